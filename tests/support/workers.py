"""Real workers in this process: started under their host, measured through their metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client.parser import text_string_to_metric_families

from gemline import telemetry
from gemline.cluster.records import WorkerRecord
from gemline.host import HostSettings, Worker, WorkerHost
from gemline.telemetry import Telemetry


@asynccontextmanager
async def hosted(worker: Worker, redis_url: str, own_telemetry: Telemetry | None = None) -> AsyncIterator[WorkerRecord]:
    """The worker, registered and serving; stopped at the end."""
    host = WorkerHost(worker, HostSettings(redis_url, metrics_port=None), own_telemetry)
    record = await host.start()
    try:
        yield record
    finally:
        await host.stop()


def measuring() -> Telemetry:
    """Telemetry whose metrics `measure` reads."""
    return telemetry.setup("test")


def measure(source: Telemetry, name: str, **labels: str) -> float:
    """Sum of the samples of that name and these labels; 0 when there is none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(source.render_metrics().decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def becomes_true(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether the condition holds within that time."""
    limit = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > limit:
            return False
        await asyncio.sleep(0.005)
    return True
