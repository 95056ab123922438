"""A worker whose backend computes wrong ends with an error, and nobody ever learns of it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import uncapped_worker
from support.uncapped_worker import uncapped
from support.workers import hosted, measuring

from gemline.cluster.connection import connect
from gemline.cluster.records import Role
from gemline.cluster.workers import WorkersView
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError
from gemline.prefill.worker import PrefillOptions, PrefillWorker

ENGINE = EngineOptions(num_kv_blocks=32, num_threads=1)


async def registered(redis_url: str) -> int:
    """How many workers hold a lease."""
    redis = connect(redis_url)
    view = WorkersView(redis)
    await view.start()
    await view.stop()
    await redis.aclose()
    return sum(len(view.workers(role)) for role in Role)


@pytest.mark.parametrize("role", ["decode", "prefill"])
async def test_it_never_registers(
    tiny_checkpoint: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr("gemline_kernels.choose.choose", uncapped)
    worker = (
        DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE))
        if role == "decode"
        else PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE))
    )
    with pytest.raises(ConfigurationError, match="the uncapped backend computes wrong"):
        async with hosted(worker, redis_url, measuring()):
            pass
    assert await registered(redis_url) == 0


@pytest.mark.slow
async def test_its_process_ends_with_status_1_and_one_line(tiny_checkpoint: Path, redis_url: str) -> None:
    arguments = ["worker", "decode", "--model-dir", str(tiny_checkpoint), "--served-model-name", "tiny"]
    paths = os.pathsep.join([str(Path(uncapped_worker.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, uncapped_worker.__file__, *arguments, "--redis-url", redis_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("gemline: the uncapped backend computes wrong on this machine: ")
    assert "Traceback" not in ended.stderr
    assert await registered(redis_url) == 0
