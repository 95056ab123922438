"""Redis goes away, stands still, is slow or comes back, empty or not: what runs goes on, new requests are served."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis as sync_redis
from support.decode_workers import wait_for_workers
from support.link import Link
from support.metrics import metric
from support.sse import Told, complete
from support.stack import Running, start_stack

from gemline.client import Client, RetryPolicy, Session
from gemline.cluster.embedded import EmbeddedRedis, _answers, _server_program
from gemline.errors import SessionNotFound, Unavailable

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
FIRST = "Tell me of the river and of the road beside it, at some length. " * 4
SECOND = "And then?"
LEASE_S = 6.0


class Redis:
    """One that can be killed, and started again where it was; everybody reaches it through `link`."""

    def __init__(self, directory: Path) -> None:
        self.server = EmbeddedRedis(directory)
        self._own_url = self.server.start()
        self._file = directory / "dump.rdb"
        self.link = Link(f"127.0.0.1:{self._port}")
        self.url = self._own_url.replace(f"127.0.0.1:{self._port}", self.link.address)

    @property
    def _port(self) -> int:
        port = urlsplit(self._own_url).port
        assert port is not None
        return port

    @property
    def pid(self) -> int:
        assert self.server.pid is not None
        return self.server.pid

    def save(self) -> None:
        """What it holds now is what it will begin with when it is started again."""
        with sync_redis.Redis.from_url(self._own_url) as client:
            client.save()

    def kill(self) -> None:
        process = self.server._process
        assert process is not None
        process.kill()
        process.wait()

    def start_again(self) -> None:
        self.server._process = self.server._run(_server_program(), self._port)
        assert _answers(self._own_url, self.server._process)
        self._file.unlink(missing_ok=True)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.server.stop()
        self.link.close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("without-redis")
    options = ("--runner", "process", "--first-prompt", "", "--dtype", "float32", "--redis-url", redis.url)
    stack = start_stack(directory, *options)
    yield stack
    stack.stop()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """One that sends each turn once."""
    wait_for_workers(running, 1)
    once = RetryPolicy(max_attempts=1)
    with Client(running.ready["grpc"], api_key=running.ready["api_key"], retry=once, timeout_s=120) as client:
        yield client


def say(session: Session, text: str) -> str:
    return session.chat(text, max_tokens=24, temperature=0.0).text


def at_event(number: int, act: Callable[[], None]) -> Callable[[int], None]:
    return lambda event: act() if event == number else None


def answer_of(running: Running) -> tuple[str, str | None, int]:
    told = complete(running, **ASKED)
    assert told.error is None
    return told.answer


def wait_until_answered(running: Running, expected: tuple[str, str | None, int]) -> None:
    """Workers of another role may come back a moment later."""
    limit_s = time.monotonic() + 60
    while (told := complete(running, **ASKED)).error is not None:
        assert time.monotonic() < limit_s, told.error
        time.sleep(0.2)
    assert told.answer == expected


def predicted(running: Running) -> float:
    """What routing has expected to be cached, by what workers told it."""
    return metric(running, "gateway", "gemline_gateway_predicted_hit_tokens_total")


def test_a_redis_that_stands_still_holds_up_nobody(running: Running, redis: Redis) -> None:
    expected = answer_of(running)
    found: list[Told] = []
    during = complete(running, at_event(20, lambda: os.kill(redis.pid, signal.SIGSTOP)), **ASKED)
    readers = [threading.Thread(target=lambda: found.append(complete(running, **ASKED))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    os.kill(redis.pid, signal.SIGCONT)
    assert [told.answer for told in (during, *found)] == [expected] * 4
    wait_until_answered(running, expected)  # it stood still for longer than its leases, if those answers took so long


def test_a_redis_that_answers_after_400_ms_costs_sessions_time_and_others_nothing(
    running: Running, redis: Redis, client: Client
) -> None:
    expected, session = answer_of(running), client.sessions.create()
    say(session, FIRST)
    second = say(session.fork(), SECOND)
    during = complete(running, at_event(20, lambda: redis.link.delay(0.4)), **ASKED)
    try:
        assert during.answer == expected
        assert say(session, SECOND) == second
        until_s = time.monotonic() + LEASE_S + 2
        while time.monotonic() < until_s:
            assert answer_of(running) == expected
        assert say(client.sessions.create(), FIRST)
    finally:
        redis.link.delay(0)
    assert session.refresh().num_turns == 2


def test_a_redis_that_comes_back_with_its_file_has_every_session(
    running: Running, redis: Redis, client: Client
) -> None:
    expected, session = answer_of(running), client.sessions.create()
    say(session, FIRST)
    second = say(session.fork(), SECOND)

    def restart() -> None:
        redis.save()
        redis.kill()
        redis.start_again()

    assert complete(running, at_event(20, restart), **ASKED).answer == expected
    wait_for_workers(running, 1)
    wait_until_answered(running, expected)
    assert say(session, SECOND) == second
    assert session.refresh().num_turns == 2


def test_streams_and_new_requests_do_without_redis_and_find_it_again_empty(
    running: Running, redis: Redis, client: Client
) -> None:
    expected, session = answer_of(running), client.sessions.create()
    first = say(session, FIRST)
    during = complete(running, at_event(20, redis.kill), **ASKED)
    assert during.error is None
    assert during.answer == expected
    with pytest.raises(Unavailable):
        say(session, SECOND)
    time.sleep(LEASE_S + 1)
    assert answer_of(running) == expected
    redis.start_again()
    wait_for_workers(running, 1)
    wait_until_answered(running, expected)
    with pytest.raises(SessionNotFound):
        say(session, SECOND)
    before = predicted(running)
    again = client.sessions.create()
    assert say(again, FIRST) == first
    assert predicted(running) > before  # of what was cached before Redis went away
    assert say(again, SECOND)
