"""The decode workers of a running stack as Redis and their own metrics tell of them, restarted ones included."""

import asyncio
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from support.stack import Running, start_stack

from gemline.cluster.connection import connect
from gemline.cluster.records import Role, State, WorkerRecord
from gemline.cluster.workers import WorkersView

LIMIT_S = 120.0


def start_colocated(directory: Path, num_decode: int, **environment: str) -> Running:
    """Decode workers that prefill for themselves, in a precision in which recomputing changes nothing."""
    kind = ("--runner", "process", "--topology", "colocated", "--dtype", "float32", "--first-prompt", "")
    size = ("--decode", str(num_decode), "--threads", "1")
    return start_stack(directory, *kind, *size, environment={"GEMLINE_RESUME_TIMEOUT_S": "8", **environment})


def decode_workers(running: Running) -> list[WorkerRecord]:
    """Those that answer and take requests now: a lease stands for a while after its worker's death."""
    return living(running.ready["redis_url"], Role.DECODE)


def living(redis_url: str, role: Role) -> list[WorkerRecord]:
    """The workers of that role that answer and take requests now."""
    return [it for it in leases(redis_url, role) if it.state is State.READY and num_requests(it) is not None]


def leases(redis_url: str, role: Role) -> tuple[WorkerRecord, ...]:
    """All that Redis knows of that role."""
    return asyncio.run(_records(redis_url, role))


async def _records(redis_url: str, role: Role) -> tuple[WorkerRecord, ...]:
    redis = connect(redis_url)
    view = WorkersView(redis)
    try:
        await view.start()
        return view.workers(role)
    finally:
        await view.stop()
        await redis.aclose()


def num_requests(worker: WorkerRecord) -> float | None:
    """Live requests on the worker, None when it does not answer."""
    try:
        text = httpx.get(f"http://{worker.metrics_address}/metrics", timeout=2).text
    except httpx.HTTPError:
        return None
    families = text_string_to_metric_families(text)
    return sum(s.value for family in families for s in family.samples if s.name == "gemline_requests")


def wait_for_workers(running: Running, num: int, role: Role = Role.DECODE) -> list[WorkerRecord]:
    """Return them once there are so many, and the gateway has had time to hear of it."""
    limit_s = time.monotonic() + LIMIT_S
    while len(workers := living(running.ready["redis_url"], role)) < num:
        assert time.monotonic() < limit_s, f"only {len(workers)} {role.value} workers"
        time.sleep(0.1)
    time.sleep(0.5)
    return workers


def holder(workers: list[WorkerRecord]) -> WorkerRecord:
    """The worker that has a request, waiting until one of them has."""
    limit_s = time.monotonic() + LIMIT_S
    while time.monotonic() < limit_s:
        for worker in workers:
            if num_requests(worker):
                return worker
    raise AssertionError("no decode worker has a request")
