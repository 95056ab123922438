"""A streamed answer for programs without an event loop."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from gemline.client.answer import Answer
from gemline.client.responses import StreamResponse
from gemline.client.retry import Tries
from gemline.client.status import trailing_metadata
from gemline.client.types import Piece


class Call(Protocol):
    """A running server stream, as grpc gives it."""

    def __next__(self) -> StreamResponse: ...

    def cancel(self) -> bool:
        """Stop it."""

    def initial_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        """What the server sent first."""


class Stream(Answer):
    """Iterate it for pieces; leave its `with` block, or `cancel()`, to stop the generation.

    Before the first piece it tries again where that may help; after it, an error is raised as it is.
    """

    def __init__(self, open_call: Callable[[Tries], Call], tries: Tries) -> None:
        super().__init__()
        self._open_call = open_call
        self._tries = tries
        self._call: Call | None = None
        self._over = threading.Event()

    def cancel(self) -> None:
        """Stop the generation; the iteration ends at once. From any thread, at any time."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while not self._over.is_set():
            try:
                response = self._receive()
            except grpc.RpcError as failure:
                self._retry_or_raise(failure)
            except BaseException:
                self.cancel()
                raise
            else:
                if response is not None:
                    return self._add(response)
                self._over.set()
                self._check_finished()
        raise StopIteration

    def _receive(self) -> StreamResponse | None:
        """The next response; None at the end."""
        if self._call is None:
            self._call = self._open_call(self._tries)
            if self._over.is_set():  # canceled from another thread meanwhile
                self._call.cancel()
        return next(self._call, None)

    def _retry_or_raise(self, failure: grpc.RpcError) -> None:
        """Get ready for another try, or raise the failure, typed; nothing of either after a cancel of our own."""
        if self._over.is_set():
            return
        if self._call is not None:
            self._note_request_id(self._call.initial_metadata() or ())
            self._note_request_id(trailing_metadata(failure).items())
            self._call = None
        try:
            pause_s = self._tries.give_up(failure) if self._last else self._tries.pause_s(failure)
        except BaseException:
            self._over.set()
            raise
        self._over.wait(pause_s)
