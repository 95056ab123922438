"""Sends one prefill's keys and values while its later chunks are still being computed. Knows no transport."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

from gemline.engine.events import FailureEvent, TokenEvent
from gemline.engine.handover import Handover, Positions
from gemline.engine.kv_form import KvForm
from gemline.engine.roster import UnknownSequence
from gemline.engine_host import KvMover
from gemline.errors import DeadlineExceeded, from_code
from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.prefill.progress import Progress
from gemline.rpc.convert import logprobs_to_proto
from gemline.transfer.connection import run_long
from gemline.transfer.frames import KvHeader, KvRange, seal
from gemline.transfer.outlet import Outlet
from gemline.transfer.send import ranges_of_chunk
from gemline_kernels.scales import Scales

T = TypeVar("T")


class _Filling(NamedTuple):
    """A slot that is being filled; with nothing when a preemption was faster."""

    slot: int
    header: "asyncio.Task[KvHeader | None]"


class KvSender:
    """One sequence's stream. `check` raises when nothing may be sent any more.

    Ranges are copied out of the cache into the outlet's slots as soon as they are computed and a slot is free, beside
    the engine's next step, and sent in order: chunk by chunk, and layer by layer in each.
    """

    def __init__(
        self,
        host: KvMover,
        seq_id: int,
        needed: Sequence[range],
        form: KvForm,
        outlet: Outlet,
        check: Callable[[], None],
        timeout_s: float,
    ) -> None:
        """A caller that takes no frame for `timeout_s` has given up."""
        self._host = host
        self._seq_id = seq_id
        self._needed = needed
        self._form = form
        self._outlet = outlet
        self._check = check
        self._timeout_s = timeout_s
        self._ranges: list[KvRange] = []  # to be sent, as far as they are computed
        self._num_begun = 0  # of these ranges
        self._filling: deque[_Filling] = deque()  # the last ones begun
        self.num_bytes = 0  # sent so far

    async def send(self, progress: Progress) -> PrefillEnd:
        """Everything, chunk by chunk; the end that vouches for it. Raises the error that ended the sequence."""
        num_planned = 0
        try:
            while True:
                reached = await progress.next()
                if isinstance(reached, FailureEvent):
                    raise from_code(reached.code, reached.message, param=reached.param)
                num_computed, first = reached
                self._ranges += ranges_of_chunk(self._needed, num_planned, num_computed, self._form.token_bytes)
                num_planned = num_computed
                await self._send_ranges()
                if first is not None and self._num_begun == len(self._ranges):
                    return self._end(first)
        finally:
            for filling in self._filling:
                filling.header.cancel()
            await asyncio.gather(*(filling.header for filling in self._filling), return_exceptions=True)

    async def _send_ranges(self) -> None:
        """Sends what is there; ends early when a preemption has taken it back, to be computed anew."""
        while self._filling or self._num_begun < len(self._ranges):
            await self._fill()
            filling = self._filling.popleft()
            header = await filling.header
            if header is None:
                return await self._begin_again(filling)
            self._check()
            await self._in_time(self._outlet.send(filling.slot, header))
            self.num_bytes += header.num_bytes

    async def _fill(self) -> None:
        """Begins as many ranges as there are free slots; waits for one when none is being filled."""
        while self._num_begun < len(self._ranges):
            slot = self._outlet.slots.take_nowait()
            if slot is None:
                if self._filling:
                    return
                slot = await self._in_time(self._outlet.slots.take())
            header = asyncio.create_task(self._export(self._ranges[self._num_begun], self._outlet.slots[slot]))
            self._filling.append(_Filling(slot, header))
            self._num_begun += 1

    async def _begin_again(self, lost: _Filling) -> None:
        """Nothing from that range on counts."""
        unsent = [lost, *self._filling]
        self._filling.clear()
        await asyncio.gather(*(filling.header for filling in unsent))
        self._num_begun -= len(unsent)
        for filling in unsent:
            self._outlet.slots.give(filling.slot)

    async def _export(self, kv: KvRange, slot: memoryview) -> KvHeader | None:
        """Fills the slot; None when the range is not there any more."""
        out = slot[: (kv.stop - kv.start) * self._form.token_bytes]
        try:
            scales = await self._host.hand_over(out.nbytes, partial(self._copy, kv, out))
            return await run_long(out.nbytes, partial(seal, kv, out, scales), self._host.movers)
        except (IndexError, UnknownSequence):  # preempted since we heard of it, or failed, which we are about to hear
            return None
        finally:
            with suppress(BufferError):  # where a copy still goes on in a thread its memory stays
                out.release()

    def _copy(self, kv: KvRange, out: memoryview, handover: Handover) -> Scales:
        return handover.export_kv(self._seq_id, kv.layer, Positions(kv.start, kv.stop), self._form, out)

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(f"the caller took no frame for {self._timeout_s} s") from None

    def _end(self, first: TokenEvent) -> PrefillEnd:
        return PrefillEnd(
            token_id=first.token_id,
            logprobs=None if first.logprobs is None else logprobs_to_proto(first.logprobs),
            num_frames=len(self._ranges),
            num_bytes=self.num_bytes,
            num_cached_tokens=first.num_cached,
        )
