"""The link between prefill and decode workers breaks, or a prefill worker dies under a transfer: slower, no more."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from support import pieces
from support.decode_workers import LIMIT_S, leases, wait_for_workers
from support.link import Link
from support.metrics import metric_at
from support.processes import ports
from support.sse import Told, complete
from support.stack import Running

from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.records import Role, WorkerRecord

pytestmark = pytest.mark.slow

EXACT = ("--dtype", "float32", "--threads", "1", "--no-prefix-cache")
LONG = "The river went on and on, and so did the road beside it. " * 55
FEW_BYTES = 10_000
MOST_BYTES = 1_500_000  # more than half of what is sent of it


@dataclass(frozen=True)
class Far:
    """A prefill worker on a loopback address of its own; all that leads there passes through links."""

    record: WorkerRecord
    links: tuple[Link, ...]
    data: Link  # for keys and values


@dataclass(frozen=True)
class Apart:
    """Two prefill workers, a decode worker that always wants them, and a gateway."""

    running: Running
    decode: WorkerRecord
    far: tuple[Far, Far]

    def num_prefills(self, where: str) -> float:
        return metric_at(self.decode.metrics_address, "gemline_prefills_total", where=where)

    def heal(self) -> None:
        """Returns once keys and values come through the links again."""
        for link in self.links:
            link.forward()
        limit_s, before = time.monotonic() + LIMIT_S, self.num_bytes
        while self.num_bytes == before:
            assert time.monotonic() < limit_s, "nothing is prefilled elsewhere any more"
            time.sleep(0.3)
            assert ask(self, "Once").error is None

    @property
    def num_bytes(self) -> float:
        return metric_at(self.decode.metrics_address, "gemline_kv_received_bytes_total", transport="socket")

    @property
    def links(self) -> list[Link]:
        return [link for one in self.far for link in one.links]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    directory = tmp_path_factory.mktemp("partition")
    with ExitStack() as running:
        redis = EmbeddedRedis(directory)
        url = redis.start()
        running.callback(redis.stop)
        running.enter_context(pieces.worker(directory, "tokenization", url))
        decode = ("--prefill", "always", "--kv-transport", "socket")
        running.enter_context(pieces.worker(directory, "decode", url, *EXACT, *decode))
        hosts = ("127.0.0.2", "127.0.0.3")
        for host in hosts:
            place = ("--bind", behind(host), "--advertise", host)
            running.enter_context(pieces.worker(directory, "prefill", url, *EXACT, *place))
        gateway = running.enter_context(pieces.gateway(directory, url))
        far = tuple(far_away(gateway, host, running) for host in hosts)
        yield Apart(gateway, wait_for_workers(gateway, 1)[0], (far[0], far[1]))


def behind(host: str) -> str:
    """Where the worker listens that says it is at `host`, where its links are."""
    return host.replace("127.0.0.", "127.0.1.")


def far_away(gateway: Running, host: str, running: ExitStack) -> Far:
    """The links to the worker that says it is there, once it has said so."""
    limit_s = time.monotonic() + LIMIT_S
    while not (found := [it for it in leases(gateway.ready["redis_url"], Role.PREFILL) if host in it.address]):
        assert time.monotonic() < limit_s, f"no prefill worker at {host}"
        time.sleep(0.1)
    record = found[0]
    links = {
        port: running.enter_context(Link(f"{behind(host)}:{port}", f"{host}:{port}")) for port in ports(record.pid)
    }
    (data,) = set(links) - {int(address.rpartition(":")[2]) for address in (record.address, record.metrics_address)}
    return Far(record, tuple(links.values()), links[data])


def ask(apart: Apart, prompt: str, **options: Any) -> Told:
    return complete(
        apart.running, prompt=prompt, max_tokens=12, ignore_eos=True, temperature=0.0, logprobs=0, **options
    )


def test_prompts_are_computed_by_the_other_pair_or_here_while_links_swallow_everything(apart: Apart) -> None:
    apart.heal()
    expected = ask(apart, LONG)
    for one in apart.far:
        before = apart.num_prefills("remote")
        for link in one.links:
            link.blackhole()
        for _ in range(3):
            assert ask(apart, LONG).answer == expected.answer
        assert apart.num_prefills("remote") > before
        for link in one.links:
            link.forward()
    for link in apart.links:
        link.blackhole()
    before = apart.num_prefills("remote")
    for _ in range(2):
        assert ask(apart, LONG).answer == expected.answer
    assert apart.num_prefills("remote") == before
    apart.heal()


@pytest.mark.parametrize(
    ("what", "num_bytes"), [("all swallow", FEW_BYTES), ("data swallowed", MOST_BYTES), ("data cut", FEW_BYTES)]
)
def test_a_link_that_breaks_under_a_transfer_costs_time_alone(apart: Apart, what: str, num_bytes: int) -> None:
    apart.heal()
    expected = ask(apart, LONG)
    before = apart.num_prefills("fallback")

    def spoil() -> None:
        for link in apart.links if what == "all swallow" else [one.data for one in apart.far]:
            link.cut() if what == "data cut" else link.blackhole()

    for one in apart.far:
        one.data.after(num_bytes, spoil)
    assert ask(apart, LONG).answer == expected.answer
    assert apart.num_prefills("fallback") == before + 1


def test_a_prefill_worker_that_dies_under_its_transfer_costs_time_alone(apart: Apart) -> None:
    apart.heal()
    expected = ask(apart, LONG)
    living = list(apart.far)
    for num_bytes in (FEW_BYTES, MOST_BYTES):
        before = apart.num_prefills("fallback")
        for one in living:
            one.data.after(num_bytes, partial(os.kill, one.record.pid, signal.SIGKILL))
        while not any(one.data.has_acted for one in living):
            assert ask(apart, LONG).answer == expected.answer
        assert apart.num_prefills("fallback") > before
        living = [one for one in living if not one.data.has_acted]
    assert not living
    assert ask(apart, LONG).answer == expected.answer
