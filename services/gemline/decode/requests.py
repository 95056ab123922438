"""Every live request of every gateway on this worker: who asked, and how it is started and ended. Event loop only."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from gemline.decode.resident import Resident
from gemline.decode.streams import GatewayStream
from gemline.engine.blocks import BlockCounts
from gemline.engine.events import FailureEvent, ResidencyChange, StepResult, TokenEvent
from gemline.engine.requests import EngineRequest
from gemline.errors import GemlineError, InvalidRequest, StaleEpoch, Unavailable
from gemline.failpoints import CrashOnToken
from gemline.internal.v1.decode_pb2 import Submit
from gemline.rpc.convert import sampling_from_proto
from gemline.signals import Recent


class Engine(Protocol):
    """Where requests go; answers come back through `RequestTable.deliver`."""

    def start(self, request: EngineRequest, request_id: str, traceparent: str) -> None:
        """Begins a request; returns at once."""

    def cancel(self, seq_id: int) -> None:
        """Ends a request, whatever its state; an ended or unknown one is fine."""

    def ended(self, seq_id: int) -> None:
        """A request got its last event."""


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """One request, from submit to its last event."""

    seq_id: int
    handle: int
    stream: GatewayStream


class RequestTable:
    """Knows the live requests. `lease_valid` says whether this worker may still speak for itself."""

    def __init__(self, engine: Engine, lease_valid: Callable[[], bool], failpoint: CrashOnToken | None = None) -> None:
        self._engine = engine
        self._lease_valid = lease_valid
        self._failpoint = failpoint
        self._live: dict[int, LiveRequest] = {}
        self._streams: set[GatewayStream] = set()
        self._seq_ids = count(1)
        self._num_running = 0
        self._resident = Resident()
        self._free = BlockCounts(0, 0)
        self._came_s: dict[int, float] = {}  # by seq_id, until the first token; by the monotonic clock
        self.ttft = Recent()
        self.draining = False
        self.idle = asyncio.Event()  # set while no request is alive
        self.idle.set()

    @property
    def load(self) -> tuple[int, int]:
        """Requests (running, waiting): those that own blocks, and the rest."""
        num_running = min(self._num_running, len(self._live))
        return num_running, len(self._live) - num_running

    def attach(self, stream: GatewayStream) -> None:
        """A gateway's stream begins."""
        if not self._lease_valid():
            raise StaleEpoch("the worker's lease is over")
        self._streams.add(stream)
        stream.residency.add_all(self._resident.names)
        stream.resident(ResidencyChange(), self._free)

    def detach(self, stream: GatewayStream) -> None:
        """A gateway's stream is over, and with it all of its requests."""
        self._streams.discard(stream)
        for handle in list(stream.seq_ids):
            self.cancel(stream, handle)

    def close_streams(self, error: GemlineError) -> None:
        """Ends every stream with `error`."""
        for stream in list(self._streams):
            stream.close(error)
            self.detach(stream)

    def submit(self, stream: GatewayStream, message: Submit) -> None:
        """Starts a request. Raises InvalidRequest when its handle is that of a live one."""
        if message.handle in stream.seq_ids:
            raise InvalidRequest(f"handle {message.handle} names a request that is alive", param="handle")
        if self._failpoint is not None:
            self._failpoint.see(message.token_ids)
        live = self._begin(stream, message.handle)
        if self.draining:
            self.fail(live.seq_id, Unavailable("the worker is shutting down"))
            return
        try:
            params = sampling_from_proto(message.sampling)
        except InvalidRequest as error:
            self.fail(live.seq_id, error)
            return
        request = EngineRequest(
            seq_id=live.seq_id,
            token_ids=tuple(message.token_ids),
            num_prompt_tokens=message.num_prompt_tokens,
            params=params,
            cache_salt=message.cache_salt,
            num_public_tokens=message.num_public_tokens,
        )
        self._engine.start(request, message.request_id, message.trace_context)

    def cancel(self, stream: GatewayStream, handle: int) -> None:
        """Ends a request without a last event; one that has just ended is fine."""
        stream.discard(handle)
        if (seq_id := stream.seq_ids.get(handle)) is not None:
            self._forget(self._live[seq_id])
            self._engine.cancel(seq_id)

    def deliver(self, result: StepResult) -> None:
        """Hands out what a step gave."""
        self._num_running = result.num_running
        self._resident.apply(result.residency)
        self._free = result.free
        for stream in self._streams:
            stream.resident(result.residency, result.free)
        self.emit(result.tokens, result.failures)
        if result.num_batch_tokens:
            for stream in self._streams:
                stream.sign_of_life(*self.load)

    def fail(self, seq_id: int, error: GemlineError) -> None:
        """Ends a request that never reached the engine."""
        self.emit(failures=(FailureEvent(seq_id, error.code, error.message, error.param),))

    def emit(self, tokens: Iterable[TokenEvent] = (), failures: Iterable[FailureEvent] = ()) -> None:
        """Events to their gateways: one message for each gateway that has a request among them."""
        if not self._lease_valid():
            self.close_streams(StaleEpoch("the worker's lease is over"))
            return
        touched = self._add_tokens(tokens) | self._add_failures(failures)
        num_running, num_waiting = self.load
        for stream in touched:
            stream.flush(num_running, num_waiting)

    def _add_tokens(self, tokens: Iterable[TokenEvent]) -> set[GatewayStream]:
        touched = set()
        for token in tokens:
            live = self._live.get(token.seq_id)
            if live is None:  # cancelled while the step ran
                continue
            if self._failpoint is not None:
                self._failpoint.see((token.token_id,))
            live.stream.add_token(live.handle, token)
            if (came_s := self._came_s.pop(token.seq_id, None)) is not None:
                self.ttft.add((now_s := time.monotonic()) - came_s, now_s)
            touched.add(live.stream)
            if token.finish is not None:
                self._end(live)
        return touched

    def _add_failures(self, failures: Iterable[FailureEvent]) -> set[GatewayStream]:
        touched = set()
        for failure in failures:
            live = self._live.get(failure.seq_id)
            if live is None:
                continue
            live.stream.add_failure(live.handle, failure)
            touched.add(live.stream)
            self._end(live)
        return touched

    def _begin(self, stream: GatewayStream, handle: int) -> LiveRequest:
        live = LiveRequest(next(self._seq_ids), handle, stream)
        self._live[live.seq_id] = live
        self._came_s[live.seq_id] = time.monotonic()
        stream.seq_ids[handle] = live.seq_id
        self.idle.clear()
        return live

    def _end(self, live: LiveRequest) -> None:
        self._forget(live)
        self._engine.ended(live.seq_id)

    def _forget(self, live: LiveRequest) -> None:
        del self._live[live.seq_id]
        self._came_s.pop(live.seq_id, None)
        del live.stream.seq_ids[live.handle]
        if not self._live:
            self.idle.set()
