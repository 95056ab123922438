"""What is on its way to one gateway. Events wait here, coalescing, until the gateway's stream takes them.

A slow gateway therefore never holds up the engine, and what waits for it is bounded by its requests' max_tokens.
"""

import asyncio
import time

from gemline.decode.resident import Outbox
from gemline.engine.blocks import BlockCounts
from gemline.engine.events import FailureEvent, ResidencyChange, TokenEvent
from gemline.errors import GemlineError
from gemline.internal.v1.decode_pb2 import AttachResponse, Error, Event, FreeBlocks, Step
from gemline.rpc.convert import finish_to_proto, logprobs_to_proto

RESIDENCY_S = 0.1  # a gateway without tokens on their way hears of the prefix cache at most so often
SIGN_OF_LIFE_S = 1.0  # a gateway with live requests hears of the engine's steps at least so often


class GatewayStream:
    """The outbox of one Attach stream; handles are the gateway's names for its requests on this stream."""

    def __init__(self, gateway_id: str) -> None:
        self.gateway_id = gateway_id
        self.residency = Outbox()  # what the gateway has not been told of the prefix cache
        self._free = BlockCounts(0, 0)
        self.seq_ids: dict[int, int] = {}  # of the live requests, by handle
        self._events: dict[int, Event] = {}  # by handle, not yet taken
        self._num_running = 0
        self._num_waiting = 0
        self._changed = asyncio.Event()
        self._error: GemlineError | None = None
        self._has_sign = False
        self._spoke_at_s = time.monotonic()

    def add_token(self, handle: int, token: TokenEvent) -> None:
        """One more token for a request; visible to the gateway after the next `flush`."""
        event = self._events.get(handle)
        if event is None:
            event = self._events[handle] = Event(handle=handle, token_ids=(token.token_id,))
        else:
            event.token_ids.append(token.token_id)
        if token.logprobs is not None:
            event.logprobs.append(logprobs_to_proto(token.logprobs))
        if token.prompt_logprobs:
            event.prompt_logprobs.extend(map(logprobs_to_proto, token.prompt_logprobs))
        if token.num_cached:
            event.num_cached_tokens = token.num_cached
        if token.num_resident:
            event.num_resident_tokens = token.num_resident
        if token.finish is not None:
            event.finish_reason = finish_to_proto(token.finish)

    def add_failure(self, handle: int, failure: FailureEvent) -> None:
        """The end of a request that cannot go on."""
        event = self._events.setdefault(handle, Event(handle=handle))
        event.error.CopyFrom(Error(code=failure.code, message=failure.message, param=failure.param or ""))

    def discard(self, handle: int) -> None:
        """Forgets what waits for a request that the gateway no longer wants."""
        self._events.pop(handle, None)

    def resident(self, change: ResidencyChange, free: BlockCounts) -> None:
        """What a step has changed in the prefix cache; told with the next tokens, or by itself soon."""
        self.residency.add(change)
        self._free = free
        if self.residency.has_news and time.monotonic() - self._spoke_at_s >= RESIDENCY_S:
            self._has_sign = True
            self._changed.set()

    def flush(self, num_running: int, num_waiting: int) -> None:
        """Lets the writer take what was added; the two counts are the whole worker's."""
        self._num_running, self._num_waiting = num_running, num_waiting
        self._changed.set()

    def sign_of_life(self, num_running: int, num_waiting: int) -> None:
        """The engine has stepped, if only for others; a gateway that knows is told once in a while."""
        if self.seq_ids and time.monotonic() - self._spoke_at_s >= SIGN_OF_LIFE_S:
            self._has_sign = True
            self.flush(num_running, num_waiting)

    def close(self, error: GemlineError) -> None:
        """Makes `take` raise `error`: the stream ends, and with it all its requests."""
        self._error = error
        self._changed.set()

    async def take(self) -> AttachResponse:
        """The next message: everything that was added since the last one."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._error is not None:
                raise self._error
            if self._events or self._has_sign:
                return self._drain()

    def _drain(self) -> AttachResponse:
        events, self._events = self._events, {}
        self._has_sign, self._spoke_at_s = False, time.monotonic()
        step = Step(
            events=events.values(),
            num_running=self._num_running,
            num_waiting=self._num_waiting,
            residency=self.residency.take(),
            free=FreeBlocks(num_global=self._free.num_global, num_local=self._free.num_local),
        )
        return AttachResponse(step=step)
