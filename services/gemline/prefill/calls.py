"""The prefills of this worker, call by call: computed, sent as they are, and forgotten. Knows no servicer."""

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count

from gemline.engine.kv_form import KvForm
from gemline.engine.requests import EngineRequest
from gemline.engine_host import EngineHost
from gemline.errors import DeadlineExceeded, StaleEpoch
from gemline.host import WorkerContext
from gemline.internal.v1.prefill_pb2 import FrameHeader, KvOffer, PrefillEnd
from gemline.prefill.progress import Progress, ProgressTable
from gemline.prefill.sender import KvSender
from gemline.signals import Recent
from gemline.telemetry import Attributes, Span
from gemline.transfer.frames import encode
from gemline.transfer.opening import Doors
from gemline.transfer.outlet import Outlet, Write
from gemline.transfer.transports import Transport, choices, host_id

# The engine answers between two steps: one that is in a long one is not waited for.
_SPEED_TIMEOUT_S = 0.01


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller wants: the prompt, and its keys and values but those of the first `num_held` tokens."""

    request: EngineRequest
    num_held: int
    heads: range | None  # of KV heads; None: all
    wire_dtype: str  # empty: the cache's
    offer: KvOffer
    request_id: str
    traceparent: str


class Calls:
    """`transports` may be used beside gRPC. A caller that takes no frame for `write_timeout_s` has given up."""

    def __init__(
        self,
        host: EngineHost,
        table: ProgressTable,
        context: WorkerContext,
        doors: Doors,
        transports: frozenset[Transport],
        write_timeout_s: float,
    ) -> None:
        self._host = host
        self._table = table
        self._context = context
        self._doors = doors
        self._transports = transports
        self._write_timeout_s = write_timeout_s
        self._seq_ids = count(1)
        self._tokens_per_s = 0.0  # as the engine said last; 0: not yet
        self.epoch = 0
        self.prefill_times = Recent()  # from a call's arrival until its prompt was computed
        meter = context.telemetry.meter
        self._sent_bytes = meter.create_counter(
            "gemline_kv_sent", unit="By", description="Keys and values sent to decode workers, by transport"
        )
        self._held_bytes = meter.create_counter(
            "gemline_kv_held", unit="By", description="All keys and values of the prompts of which they were sent"
        )

    def new_seq_id(self) -> int:
        """A number for one more sequence."""
        return next(self._seq_ids)

    async def run(self, order: Order, write: Write) -> None:
        """Prefills, sends, and writes the end frame. However it ends, the blocks are free within one step."""
        seq_id, arrived_s, epoch = order.request.seq_id, time.monotonic(), self.epoch
        form = self._host.engine.kv_form(order.wire_dtype, order.heads)
        traced = self._traced(order)
        progress = self._table.begin(seq_id)
        try:
            with traced or nullcontext():
                self._host.thread.submit(await self._host.constrained(order.request))
                write = partial(self._write, epoch, write)
                ways = choices(order.offer, self._transports, host_id())
                outlet = await self._doors.open(order.offer, ways, write)
                if traced is not None:
                    traced.set("gemline.kv_transport", outlet.transport.value)
                try:
                    end = await self._send(order, form, progress, outlet, epoch)
                    end.prefill_s = progress.computed_s - arrived_s
                    self.prefill_times.add(end.prefill_s, progress.computed_s)
                    end.since_computed_s = time.monotonic() - progress.computed_s
                    await write(encode(FrameHeader(end=end)))
                finally:
                    outlet.close()
        finally:
            self._table.end(seq_id)
            self._host.thread.cancel(seq_id)

    async def _send(self, order: Order, form: KvForm, progress: Progress, outlet: Outlet, epoch: int) -> PrefillEnd:
        num_tokens = len(order.request.token_ids)
        needed = self._host.needed(num_tokens, order.num_held)
        check = partial(self._check, epoch)
        sender = KvSender(self._host, order.request.seq_id, needed, form, outlet, check, self._write_timeout_s)
        try:
            end = await sender.send(progress)
        finally:
            self._sent_bytes.add(sender.num_bytes, {"transport": outlet.transport.value})
        held = self._host.engine.kv_form(heads=order.heads)
        self._held_bytes.add(num_tokens * held.token_bytes * self._host.engine.config.num_hidden_layers)
        end.tokens_per_s = await self._ask_speed()
        return end

    async def _write(self, epoch: int, write: Write, frame: bytes) -> None:
        self._check(epoch)
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await write(frame)
        except TimeoutError:
            raise DeadlineExceeded(f"the caller took no frame for {self._write_timeout_s} s") from None

    def _check(self, epoch: int) -> None:
        if epoch != self.epoch or not self._context.lease_valid():
            raise StaleEpoch(f"the worker's lease of epoch {epoch} is over")

    async def _ask_speed(self) -> float:
        asked = asyncio.wrap_future(self._host.thread.call(lambda engine: engine.tokens_per_s))
        await asyncio.wait([asked], timeout=_SPEED_TIMEOUT_S)
        if asked.done():
            self._tokens_per_s = asked.result() or 0.0
        return self._tokens_per_s

    def _traced(self, order: Order) -> Span | None:
        if not order.traceparent:
            return None
        attributes: Attributes = {
            "gemline.request_id": order.request_id,
            "gemline.num_tokens": len(order.request.token_ids),
        }
        return self._context.telemetry.span("prefill", order.traceparent, attributes)
