"""What the gateway's tests share: workers driven by hand, and a gateway with real workers in this very process."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support.hand_worker import HandWorker, MakeWorker
from support.in_process import MODEL, TENANT, InProcess, in_process

from gemline.cluster.limits import LimitStore, Reserved
from gemline.gateway.sessions import Sessions


@pytest.fixture
async def make_worker() -> AsyncIterator[MakeWorker]:
    """Starts hand-driven decode workers; all are stopped at the end."""
    workers: list[HandWorker] = []

    async def make(epoch: int = 1, address: str = "127.0.0.1:0") -> HandWorker:
        worker = HandWorker(epoch)
        await worker.start(address)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        await worker.stop()


@pytest.fixture
async def platform(redis_url: str, tiny_checkpoint: Path) -> AsyncIterator[InProcess]:
    """Ready to generate."""
    async with in_process(redis_url, tiny_checkpoint) as running:
        yield running


@pytest.fixture
def sessions(platform: InProcess) -> Sessions:
    """Those of its gateway."""
    return platform.gateway.sessions


@pytest.fixture
async def session_id(sessions: Sessions) -> str:
    """A new session of TENANT."""
    return (await sessions.create(TENANT, MODEL, None, {})).record.session_id


@pytest.fixture
def num_asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often Redis has been asked about limits."""
    asks, num = LimitStore._ask, 0

    async def noted(self: LimitStore, *arguments: Any, **options: Any) -> Reserved:
        nonlocal num
        num += 1
        return await asks(self, *arguments, **options)

    monkeypatch.setattr(LimitStore, "_ask", noted)
    return lambda: num
