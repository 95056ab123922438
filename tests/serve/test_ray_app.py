"""A replica as Ray Serve has it, without Ray: what becomes of it when its worker breaks."""

import os
import subprocess
import sys
from pathlib import Path

# A process of its own, which has to end.
BREAKS = """
import asyncio, os, sys
from test_host import LengthWorker
from gemline.host import HostSettings, WorkerHost
from gemline.serve.ray_app import HostedWorker
from gemline.telemetry import off

class Stuck(LengthWorker):
    async def stop(self):
        raise RuntimeError("it cannot even be stopped")

async def main():
    worker, replica = Stuck(), HostedWorker.__new__(HostedWorker)
    replica._host = WorkerHost(worker, HostSettings(sys.argv[1], metrics_port=None), off())
    await replica._host.start()
    worker.broken = True
    await asyncio.wait([asyncio.create_task(replica._end_when_broken())], timeout=60)
    print("it lives on", flush=True)
    os._exit(0)

asyncio.run(main())
"""


def test_a_replica_whose_worker_is_broken_ends_though_it_cannot_be_stopped(redis_url: str) -> None:
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    told = subprocess.run(
        [sys.executable, "-c", BREAKS, redis_url], env=environment, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout) == (1, ""), told.stderr
