"""Redis goes away, stands still or comes back empty: what runs goes on, and new requests are served."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.decode_workers import wait_for_workers
from support.sse import Told, complete
from support.stack import Running, start_stack

from gemline.cluster.embedded import EmbeddedRedis, _answers, _server_program

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


class Redis:
    """One that can be killed and started again where it was, empty."""

    def __init__(self, directory: Path) -> None:
        self.server = EmbeddedRedis(directory)
        self.url = self.server.start()

    @property
    def pid(self) -> int:
        assert self.server.pid is not None
        return self.server.pid

    def kill(self) -> None:
        process = self.server._process
        assert process is not None
        process.kill()
        process.wait()

    def start_again(self) -> None:
        port = urlsplit(self.url).port
        assert port is not None
        self.server._process = self.server._run(_server_program(), port)
        assert _answers(self.url, self.server._process)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path / "redis")
    yield server
    os.kill(server.pid, signal.SIGCONT)
    server.server.stop()


@pytest.fixture
def running(tmp_path: Path, redis: Redis) -> Iterator[Running]:
    stack = start_stack(tmp_path, "--runner", "process", "--first-prompt", "", "--redis-url", redis.url)
    yield stack
    stack.stop()


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


def test_streams_and_new_requests_do_without_redis_and_find_it_again_empty(running: Running, redis: Redis) -> None:
    expected = answer_of(running)
    during = complete(running, at_event(20, redis.kill), **ASKED)
    assert during.error is None
    assert during.answer == expected
    time.sleep(7)  # longer than a lease lasts
    assert answer_of(running) == expected
    redis.start_again()
    wait_for_workers(running, 1)
    wait_until_answered(running, expected)


def test_a_redis_that_stands_still_holds_up_nobody(running: Running, redis: Redis) -> None:
    expected = answer_of(running)
    found: list[Told] = []
    os.kill(redis.pid, signal.SIGSTOP)
    readers = [threading.Thread(target=lambda: found.append(complete(running, **ASKED))) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    os.kill(redis.pid, signal.SIGCONT)
    assert [told.answer for told in found] == [expected] * 3
    assert answer_of(running) == expected
