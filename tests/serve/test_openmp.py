"""An engine's idle threads soon leave the cores to the gateway, unless the operator wants them to spin."""

import os
import re
import subprocess
import sys

import pytest

from gemline.serve.openmp import limit_spinning

BUILD = """
from gemline.serve.settings import WorkerSettings
from gemline.serve.workers import build_worker

build_worker(WorkerSettings("decode", "no-model", "m", "redis://127.0.0.1:1"))
"""


def spin_count() -> str:
    """What libgomp says of itself in a process that has built a decode worker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**kept, "OMP_DISPLAY_ENV": "VERBOSE"},
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if found is None:
        pytest.skip("this torch computes with another OpenMP than GNU's")
    return found[1]


@pytest.mark.slow
def test_a_worker_sets_the_count_before_openmp_reads_it() -> None:
    assert spin_count() == "5000"


def test_the_operators_own_count_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "77"


def test_the_operators_policy_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
