"""What tests of several parts share: a real Redis and a tiny checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gemline.cluster.embedded import EmbeddedRedis

# Tests share the cores with the processes they start: torch's threads would wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` a file's tests stay together, as they share what they start, unless they name a group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one redis-server for the whole session."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield server.start()
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of a real Redis that holds nothing."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Gemma 2 checkpoint that runs in milliseconds. Not to be changed by a test."""
    from support.noise_model.checkpoint import TINY, make_checkpoint

    target = tmp_path_factory.mktemp("tiny")
    make_checkpoint(target, TINY)
    return target
