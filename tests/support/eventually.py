"""Waiting, in a test, for what another task or process brings about."""

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return once it holds; fail when it does not within that time."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - it is somebody else's state
            await asyncio.sleep(0.005)
