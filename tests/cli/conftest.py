"""A stack that `gemline up` would have announced: a fake gateway and its ready file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_gateway import FakeGateway, Served


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


@pytest.fixture
def gateway(served: Served) -> FakeGateway:
    return served.gateway


@pytest.fixture
def home(tmp_path: Path, served: Served) -> Path:
    """A cache folder whose ready file leads to the fake gateway."""
    ready = {
        "http": "http://127.0.0.1:1",
        "grpc": served.address,
        "api_key": "gk_ready",
        "model": "gemma",
        "processes": [{"role": "gateway", "pid": 1, "address": served.address, "metrics": "127.0.0.1:2"}],
        "of_a_later_version": True,
    }
    (tmp_path / "ready.json").write_text(json.dumps(ready))
    return tmp_path
