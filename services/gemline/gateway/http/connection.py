"""Work that ends when its client is gone: it left, or it takes nothing any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Send

_T = TypeVar("_T")


async def while_connected(work: Coroutine[Any, Any, _T], *gone: Coroutine[Any, Any, None]) -> _T:
    """The result of `work`; when one of `gone` returns first, `work` is cancelled and ClientDisconnect raised."""
    working = asyncio.ensure_future(work)
    watching = [asyncio.ensure_future(one) for one in gone]
    try:
        await asyncio.wait((working, *watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client left. The body must have been read: `receive` then speaks of nothing else."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StallWatch:
    """Sends, and knows when a message has not been taken for `timeout_s` to twice that.

    A watch that looks from time to time: a timer for every message would cost more than the message.
    """

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._num_begun = 0
        self._num_taken = 0

    async def send(self, message: Message) -> None:
        """Waits while the client is slow."""
        self._num_begun += 1
        await self._send(message)
        self._num_taken = self._num_begun

    async def stalled(self) -> None:
        """Returns when the client takes nothing any more."""
        waiting_for = 0
        while not (waiting_for and self._num_taken < waiting_for):
            waiting_for = self._num_begun if self._num_taken < self._num_begun else 0
            await asyncio.sleep(self._timeout_s)
