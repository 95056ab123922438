"""The platform piece by piece: workers and gateways as bare processes, which nobody starts again when they die."""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.noise_model.checkpoint import cached_demo
from support.stack import START_LIMIT_S, Running

from gemline import orphan
from gemline.cluster.access import KeyRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.connection import connect
from gemline.cluster.limits import Limits

MODEL = "gemline-demo"


@contextmanager
def worker(directory: Path, role: str, redis_url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker of the demo model, begun: it registers later."""
    model = ("--model-dir", str(cached_demo()), "--served-model-name", MODEL)
    process = _start(directory / f"{role}-{secrets.token_hex(2)}.log", "worker", role, redis_url, *model, *options)
    with _ended(process):
        yield process


@contextmanager
def gateway(directory: Path, redis_url: str, api_key: str = "a key of the tests") -> Iterator[Running]:
    """One more gateway to the workers that Redis knows, ready."""
    name = f"gateway-{secrets.token_hex(2)}"
    output, ready_file, keys_file = (directory / f"{name}.{ending}" for ending in ("log", "json", "keys"))
    keys_file.write_text(f"local:{api_key}\n")
    options = ("--http-port", "0", "--grpc-port", "0", "--keys-file", str(keys_file), "--ready-file", str(ready_file))
    process = _start(output, "gateway", None, redis_url, *options)
    with _ended(process):
        limit_s = time.monotonic() + START_LIMIT_S
        while not ready_file.exists():
            assert process.poll() is None and time.monotonic() < limit_s, output.read_text()
            time.sleep(0.05)
        addresses = json.loads(ready_file.read_text())
        metrics = addresses["http"].removeprefix("http://")
        own = {"role": "gateway", "pid": process.pid, "metrics": metrics}
        about = {"api_key": api_key, "model": MODEL, "redis_url": redis_url, "processes": [own]}
        yield Running(process, addresses | about, output)


def make_key(redis_url: str, tenant_id: str, limits: Limits | None = None) -> str:
    """A new key of that tenant."""

    async def make() -> str:
        client = connect(redis_url)
        try:
            return (await AccessStore(client, "tests").create_key(KeyRecord(tenant_id, limits=limits or Limits()))).key
        finally:
            await client.aclose()

    return asyncio.run(make())


def _start(output: Path, kind: str, role: str | None, redis_url: str, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "gemline.cli.main", kind, *([role] if role else []), *options]
    environment = {**os.environ, "GEMLINE_REDIS_URL": redis_url}
    with output.open("wb") as log:
        return subprocess.Popen(orphan.command(words), stdout=log, stderr=log, env=environment)


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """In the end it is gone, whatever became of it."""
    try:
        yield
    finally:
        process.kill()
        process.wait()
