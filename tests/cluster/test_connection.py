import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gemline.cluster.connection import calling, connect, location
from gemline.cluster.embedded import EmbeddedRedis
from gemline.errors import ConfigurationError, Unavailable


async def ping(redis: Redis) -> None:
    async with calling(redis):
        await redis.time()


async def test_a_redis_that_is_there_answers(redis_url: str) -> None:
    redis = connect(redis_url)
    await ping(redis)
    await redis.aclose()


async def test_the_error_names_the_host_and_hides_the_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        redis = connect(f"redis://someone:sesame@127.0.0.1:{port}/0")
        with pytest.raises(Unavailable, match=f"Redis at 127.0.0.1:{port}") as caught:
            await ping(redis)
    assert "sesame" not in str(caught.value)
    await redis.aclose()


async def test_a_wrong_password_is_an_error_too(redis_url: str) -> None:
    redis = connect(redis_url.replace("redis://:", "redis://:x"))
    with pytest.raises(Unavailable):
        await ping(redis)
    await redis.aclose()


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost", "redis://localhost:port"])
def test_something_else_than_a_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(url)
    assert caught.value.param == "redis_url"


def test_a_socket_is_named_by_its_path() -> None:
    assert location(connect("unix:///run/redis.sock")) == "/run/redis.sock"


async def test_a_frozen_redis_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    redis = connect(server.start())
    await ping(redis)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(Unavailable):
        async with calling(redis, timeout_s=0.2):
            await redis.time()
    assert time.monotonic() - started_s < 1
    os.kill(server.pid, signal.SIGCONT)
    await redis.aclose()
    server.stop()


@pytest.mark.parametrize("num_turns", range(16))
async def test_a_task_that_is_cancelled_while_it_calls_redis_ends(redis_url: str, num_turns: int) -> None:
    redis = connect(redis_url)

    async def ask_forever() -> None:
        while True:
            await ping(redis)

    task = asyncio.create_task(ask_forever())
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done and task.cancelled()
    await redis.aclose()
