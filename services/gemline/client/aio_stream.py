"""A streamed answer for asyncio programs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

import grpc

from gemline.client.answer import Answer
from gemline.client.responses import StreamResponse
from gemline.client.retry import Tries
from gemline.client.status import trailing_metadata
from gemline.client.types import Piece
from gemline.errors import Unavailable


class AsyncCall(Protocol):
    """A running server stream, as grpc.aio gives it."""

    def __aiter__(self) -> AsyncIterator[StreamResponse]: ...

    def cancel(self) -> bool:
        """Stop it."""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What the server sent first."""


class AsyncStream(Answer):
    """Iterate it for pieces; leave its `async with` block, or `cancel()`, to stop the generation.

    Before the first piece it tries again where that may help; after it, an error is raised as it is.
    """

    def __init__(self, open_call: Callable[[Tries], Awaitable[AsyncCall]], tries: Tries) -> None:
        super().__init__()
        self._open_call = open_call
        self._tries = tries
        self._call: AsyncCall | None = None
        self._over = asyncio.Event()

    def cancel(self) -> None:
        """Stop the generation; the iteration ends at once. From any task of the loop, at any time."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while not self._over.is_set():
            try:
                response = await self._receive()
            except grpc.RpcError as failure:
                await self._retry_or_raise(failure)
            except asyncio.CancelledError:
                if is_task_canceled():
                    self.cancel()
                    raise
                if not self._over.is_set():  # not by our own cancel either
                    self._over.set()
                    raise Unavailable("the client was closed during the stream") from None
            except BaseException:
                self.cancel()
                raise
            else:
                if response is not None:
                    return self._add(response)
                self._over.set()
                self._check_finished()
        raise StopAsyncIteration

    async def _receive(self) -> StreamResponse | None:
        """The next response; None at the end."""
        if self._call is None:
            self._call = await self._open_call(self._tries)
            if self._over.is_set():  # canceled from another task meanwhile
                self._call.cancel()
        return await anext(aiter(self._call), None)

    async def _retry_or_raise(self, failure: grpc.RpcError) -> None:
        """Get ready for another try, or raise the failure, typed; nothing of either after a cancel of our own."""
        if self._over.is_set():
            return
        if self._call is not None:
            self._note_request_id(await self._call.initial_metadata())
            self._note_request_id(trailing_metadata(failure).items())
            self._call = None
        try:
            pause_s = self._tries.give_up(failure) if self._last else self._tries.pause_s(failure)
        except BaseException:
            self._over.set()
            raise
        await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait so long, or until canceled."""
        try:
            await asyncio.wait_for(self._over.wait(), pause_s)
        except TimeoutError:
            return


def is_task_canceled() -> bool:
    """Whether it is this task that is being canceled; grpc.aio raises CancelledError for a canceled call as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
