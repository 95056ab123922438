"""What tests of several parts share: a real Redis and a tiny checkpoint."""

import atexit
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings

from gemline.cluster.embedded import EmbeddedRedis

# Nobody is called beyond this machine: httpx, of which each test makes a new client or several, need not read 150 CAs.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # it starts beside other tests
# Tests share the cores with the processes they start: torch's threads would wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No time that an example takes on a busy machine would mean a fault.
settings.register_profile("gemline", deadline=None)
settings.load_profile("gemline")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` a file's tests stay together, as they share what they start, unless they name a group."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Says so when the groups are lost: all would pass, but each stack start twice and be ended in the midst."""
    if node.config.getoption("dist") == "loadgroup" and not all("@" in item_id for item_id in ids):
        pytest.exit("this pytest-xdist does not group with this pytest: see pyproject.toml", returncode=4)


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it for garbage, again and again, was a fifth of the fast tests' time.

    Hypothesis imports some modules within a test, and pytest parses them then: Python before 3.11.8 fails to at times
    when it looks for garbage meanwhile (python/cpython#106905). Before any test has run there is next to none.
    """
    for lazy in ("internal.conjecture.optimiser", "strategies._internal.regex", "strategies._internal.types"):
        importlib.import_module(f"hypothesis.{lazy}")
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # Triton's library complains at the exit of what is left over


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
