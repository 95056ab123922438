"""What the gateway's tests share: workers driven by hand, and a gateway with real workers in this very process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.hand_worker import HandWorker, MakeWorker
from support.in_process import MODEL, TENANT, InProcess, in_process

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
