"""What has come for one request and was not read yet: between a decode worker's stream and the request's reader."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gemline.engine.events import FinishReason
from gemline.errors import GemlineError
from gemline.gateway.moves import Reason, error_of_break
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.rpc.convert import error_from_proto, finish_from_proto


class Delivery(NamedTuple):
    """Everything that came since the last one; `finish` is set on the request's last delivery."""

    token_ids: list[int]
    logprobs: list[sampling_pb2.Logprobs]  # one per id, or none at all
    finish: FinishReason | None
    num_cached: int = 0  # of the prompt's tokens, found in a prefix cache; comes with the first id
    num_resident: int = 0  # of them, found in the decode worker's own
    prompt_logprobs: Sequence[sampling_pb2.Logprobs] = ()  # of all the prompt's tokens but the first; with the first id


class Inbox:
    """One reader, one writer, one event loop; costs no task and no queue.

    Steps that arrive while the reader is busy are joined into one delivery. It holds no more than the request's
    max_tokens ids, however slow the reader is, for the worker generates no more.
    """

    __slots__ = (
        "_cancel",
        "_error",
        "_finish",
        "_is_canceled",
        "_logprobs",
        "_num_cached",
        "_num_resident",
        "_prompt_logprobs",
        "_token_ids",
        "_waiter",
        "broken_by",
        "has_begun",
    )

    def __init__(self, cancel: Callable[[], None]) -> None:
        """`cancel` tells the worker; it is harmless after the request's end."""
        self._cancel = cancel
        self._token_ids: list[int] = []
        self._logprobs: list[sampling_pb2.Logprobs] = []
        self._prompt_logprobs: Sequence[sampling_pb2.Logprobs] = ()
        self._num_cached = self._num_resident = 0
        self._finish: FinishReason | None = None
        self._error: GemlineError | None = None
        self._is_canceled = False
        self._waiter: asyncio.Future[None] | None = None
        self.broken_by: Reason | None = None  # what ended the worker's stream; None while it stands
        self.has_begun = False  # a token has come

    @property
    def is_open(self) -> bool:
        """Whether nothing has come yet: no token, no end."""
        return not (self.has_begun or self._has_news())

    def deliver(self, event: decode_pb2.Event) -> bool:
        """Take what a step brought; true when it was the request's last event."""
        if event.token_ids:
            self.has_begun = True
            self._token_ids.extend(event.token_ids)
        if event.logprobs:
            self._logprobs.extend(event.logprobs)
        if event.prompt_logprobs:
            self._prompt_logprobs = event.prompt_logprobs
        if event.num_cached_tokens:
            self._num_cached = event.num_cached_tokens
        if event.num_resident_tokens:
            self._num_resident = event.num_resident_tokens
        self._finish = finish_from_proto(event.finish_reason)
        if event.HasField("error"):
            self._error = error_from_proto(event.error)
        self._wake()
        return self._finish is not None or self._error is not None

    def fail(self, reason: Reason) -> None:
        """The worker's stream is broken: the reader gets what is here, and then the error."""
        self.broken_by, self._error = reason, error_of_break(reason)
        self._wake()

    def cancel(self) -> None:
        """Tell the worker that nobody reads on, and release a reader that waits."""
        self._is_canceled = True
        self._cancel()
        self._wake()

    async def take(self) -> Delivery:
        """All that is new, waiting for it if need be; nothing once it was canceled.

        Raises the request's error when everything that came before it was taken.
        """
        if not self._has_news():
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self._token_ids:
            raise self._error
        delivery = Delivery(
            self._token_ids,
            self._logprobs,
            self._finish,
            self._num_cached,
            self._num_resident,
            self._prompt_logprobs,
        )
        self._token_ids, self._logprobs, self._num_cached, self._num_resident = [], [], 0, 0
        self._prompt_logprobs = ()
        return delivery

    def _has_news(self) -> bool:
        return bool(self._token_ids) or self._finish is not None or self._error is not None or self._is_canceled

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
