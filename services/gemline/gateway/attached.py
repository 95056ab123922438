"""The requests on one standing stream to a decode worker, by handle. Knows no network: messages in, messages out."""

import asyncio
import time
from collections.abc import AsyncIterator

from gemline.errors import Unavailable
from gemline.gateway.inbox import Inbox
from gemline.gateway.moves import Reason, error_of_break
from gemline.internal.v1 import decode_pb2

MAX_HANDLE = 2**32 - 1


class Attached:
    """From the worker's hello until the stream breaks; then it is of no more use. Belongs to one event loop."""

    def __init__(self) -> None:
        self._inboxes: dict[int, Inbox] = {}
        self._last_handle = 0
        self._outgoing: asyncio.Queue[decode_pb2.AttachRequest | None] = asyncio.Queue()
        self._broken_by: Reason | None = None
        self._pending: dict[int, int] = {}  # tokens to compute of those without a first one, by handle
        self.num_reported = 0  # sequences running and waiting there, as the last step said
        self.num_submitted = 0  # by us, since then
        self.reported_at_s = float("-inf")  # of the monotonic clock

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._inboxes)

    @property
    def num_pending_tokens(self) -> int:
        """To be computed there of our prompts that have no first token yet."""
        return sum(self._pending.values())

    @property
    def expects_tokens(self) -> bool:
        """Whether a request has begun and not ended: the worker computes for it, and is heard of."""
        return any(inbox.has_begun for inbox in self._inboxes.values())

    async def outgoing(self) -> AsyncIterator[decode_pb2.AttachRequest]:
        """What goes down to the worker, in order; ends when the stream breaks."""
        while (request := await self._outgoing.get()) is not None:
            yield request

    def say(self, hello: decode_pb2.Hello) -> None:
        """Introduce ourselves; comes before everything else."""
        self._outgoing.put_nowait(decode_pb2.AttachRequest(hello=hello))

    def submit(self, submit: decode_pb2.Submit, num_found: int = 0) -> Inbox:
        """Send a request, filling in its handle; raises the stream's error when it is broken.

        `num_found` of its tokens are expected to be cached there.
        """
        if self._broken_by is not None:
            raise Unavailable(error_of_break(self._broken_by).message)
        submit.handle = handle = self._new_handle()
        inbox = self._inboxes[handle] = Inbox(lambda: self._cancel(handle))
        self.num_submitted += 1
        self._pending[handle] = len(submit.token_ids) - num_found
        self._outgoing.put_nowait(decode_pb2.AttachRequest(submit=submit))
        return inbox

    def on_step(self, step: decode_pb2.Step) -> bool:
        """Hand a step's tokens to their readers. What comes for a request that was canceled is dropped.

        Whether the worker may have room for more than before: a prompt was computed, or a request ended.
        """
        num_pending, num_before = len(self._pending), self.num_reported
        for event in step.events:
            self._pending.pop(event.handle, None)
            inbox = self._inboxes.get(event.handle)
            if inbox is not None and inbox.deliver(event):
                del self._inboxes[event.handle]
        self.num_reported, self.num_submitted = step.num_running + step.num_waiting, 0
        self.reported_at_s = time.monotonic()
        return len(self._pending) < num_pending or self.num_reported < num_before

    def on_break(self, reason: Reason) -> None:
        """The stream is gone, and with it every request on it; what still comes on it is nobody's."""
        self._broken_by = reason
        self._pending.clear()
        self._outgoing.put_nowait(None)
        inboxes, self._inboxes = self._inboxes, {}
        for inbox in inboxes.values():
            inbox.fail(reason)

    def _new_handle(self) -> int:
        handle = self._last_handle % MAX_HANDLE + 1
        while handle in self._inboxes:
            handle = handle % MAX_HANDLE + 1
        self._last_handle = handle
        return handle

    def _cancel(self, handle: int) -> None:
        self._pending.pop(handle, None)
        if self._inboxes.pop(handle, None) is not None:
            self._outgoing.put_nowait(decode_pb2.AttachRequest(cancel=decode_pb2.Cancel(handle=handle)))
