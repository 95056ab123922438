"""Two gateways before one worker behave as one: in fairness, in limits, and when one of them dies."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from support import pieces
from support.stack import Running, start_stack

from gemline.client import Client, RetryPolicy
from gemline.cluster.limit_scripts import USAGE
from gemline.cluster.limits import LEASE_S, Limits
from gemline.errors import RateLimited, Unavailable

pytestmark = pytest.mark.slow

ADMIN_KEY = "ga_of_the_operators"
MEASURED_S = 8.0
AT_ONCE = 12  # of each tenant at each gateway: more than the worker has places
ONCE = RetryPolicy(max_attempts=1)
BOUND = 2.0  # times what the other got; without common shares it is 3


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    small = ("--runner", "process", "--topology", "colocated", "--threads", "1", "--max-running", "8")
    directory, secret = tmp_path_factory.mktemp("fair"), {"GEMLINE_ADMIN_KEY": ADMIN_KEY}
    running = start_stack(directory, *small, "--first-prompt", "", "--admin-port", "0", environment=secret)
    yield running
    running.stop()


def flood(address: str, key: str, ended: threading.Event) -> None:
    """One answer after the other."""
    with Client(address, api_key=key) as client:
        number = 0
        while not ended.is_set():
            number += 1
            client.generate(f"Story {threading.get_ident()} {number}", max_tokens=24, ignore_eos=True)


def delivered(redis_url: str) -> Counter[str]:
    """Tokens of answers, by tenant, that are in the usage stream."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        records = [fields for _, fields in client.xrange(USAGE)]
    tokens: Counter[str] = Counter()
    for record in records:
        tokens[record["tenant"]] += int(record["completion_tokens"])
    return tokens


def test_a_tenant_that_floods_every_gateway_gets_no_more_than_one_that_asks_at_one(
    stack: Running, tmp_path: Path
) -> None:
    url = stack.ready["redis_url"]
    everywhere, here = (pieces.make_key(url, tenant) for tenant in ("all-doors", "one-door"))
    ended = threading.Event()
    with pieces.gateway(tmp_path, url) as other:
        doors = [(stack, everywhere), (other, everywhere), (other, here)]
        threads = [
            threading.Thread(target=flood, args=(gateway.ready["grpc"], key, ended))
            for gateway, key in doors
            for _ in range(AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        try:
            time.sleep(2)
            before = delivered(url)
            time.sleep(MEASURED_S)
            got = delivered(url) - before
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    print(dict(got))
    assert min(got.values()) > 100
    assert 1 / BOUND < got["all-doors"] / got["one-door"] < BOUND


def test_what_a_gateway_that_was_killed_had_reserved_is_free_when_its_lease_is_over(
    stack: Running, tmp_path: Path
) -> None:
    url = stack.ready["redis_url"]
    key = pieces.make_key(url, "one-at-a-time", Limits(concurrent_requests=1, tokens_per_min=100_000))
    freed_s = 0.0
    with (
        pieces.gateway(tmp_path, url) as dying,
        Client(dying.ready["grpc"], api_key=key, retry=ONCE) as client,
        Client(stack.ready["grpc"], api_key=key, retry=ONCE) as elsewhere,
        suppress(Unavailable),  # the stream's end
        client.generate_stream("Once", max_tokens=900, ignore_eos=True) as stream,
    ):
        next(iter(stream))
        with pytest.raises(RateLimited, match="1 requests at once"):
            elsewhere.generate("Twice", max_tokens=1)
        dying.process.kill()
        killed_s = time.monotonic()
        while not admitted(elsewhere):
            assert time.monotonic() < killed_s + LEASE_S + 5, "its place is still taken"
            time.sleep(0.2)
        freed_s = time.monotonic() - killed_s
    assert freed_s


def admitted(client: Client) -> bool:
    try:
        client.generate("Twice", max_tokens=1)
    except RateLimited:
        return False
    return True


def test_the_operators_key_is_the_gateways_alone(stack: Running) -> None:
    assert stack.ready["admin"]
    for process in stack.ready["processes"]:
        environment = Path(f"/proc/{process['pid']}/environ").read_text()
        assert (ADMIN_KEY in environment) == (process["role"] == "gateway"), process["role"]
