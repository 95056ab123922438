"""Sends one prefill's keys and values while its later chunks are still being computed. Knows no protocol but frames."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from gemline.engine.engine import Engine
from gemline.engine.events import FailureEvent, TokenEvent
from gemline.engine_host import EngineHost
from gemline.errors import from_code
from gemline.prefill.progress import Progress
from gemline.rpc.convert import logprobs_to_proto
from gemline.transfer.frames import KvRange
from gemline.transfer.send import FrameWriter, ranges_of_chunk

# Ranges fetched from the engine between two of its steps: up to 32 MiB, and as many again while those are being sent.
_BATCH_RANGES = 8
# A payload from this size on is encoded in a thread: checksum and copy would hold up the event loop.
_OFF_LOOP_BYTES = 128 * 1024


class KvSender:
    """One sequence's stream. `write` takes one frame and returns when there is room for the next."""

    def __init__(
        self, host: EngineHost, seq_id: int, num_tokens: int, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._host = host
        self._seq_id = seq_id
        self._needed = host.needed(num_tokens)
        self._write = write
        self._writer = FrameWriter()
        self._ranges: list[KvRange] = []  # to be sent, as far as they are computed
        self._num_sent = 0  # of these ranges

    @property
    def num_bytes(self) -> int:
        """Payload sent so far."""
        return self._writer.num_bytes

    async def send(self, progress: Progress) -> None:
        """Everything, chunk by chunk, and the end frame. Raises the error that ended the sequence."""
        num_planned = 0
        while True:
            reached = await progress.next()
            if isinstance(reached, FailureEvent):
                raise from_code(reached.code, reached.message)
            num_computed, first = reached
            self._ranges += ranges_of_chunk(self._needed, num_planned, num_computed, self._host.token_bytes)
            num_planned = num_computed
            await self._send_ranges()
            if first is not None and self._num_sent == len(self._ranges):
                return await self._write(self._end(first))

    async def _send_ranges(self) -> None:
        """Sends what is there; ends early when a preemption has taken it back, to be computed anew."""
        fetched = self._fetch(self._num_sent)
        while self._num_sent < len(self._ranges):
            payloads = await asyncio.wrap_future(fetched)
            if payloads is None:
                return
            batch = self._ranges[self._num_sent : self._num_sent + len(payloads)]
            fetched = self._fetch(self._num_sent + len(batch))
            for kv, payload in zip(batch, payloads, strict=True):
                await self._write(await self._encode(kv, payload))
                self._num_sent += 1

    def _fetch(self, start: int) -> Future[list[memoryview] | None]:
        """The bytes of the next ranges, on their way out of the engine; None when they are not there any more."""
        batch = self._ranges[start : start + _BATCH_RANGES]
        return self._host.thread.call(lambda engine: self._export(engine, batch))

    def _export(self, engine: Engine, batch: list[KvRange]) -> list[memoryview] | None:
        try:
            return [engine.export_kv(self._seq_id, *kv) for kv in batch]
        except IndexError:  # preempted since we heard of it
            return None

    async def _encode(self, kv: KvRange, payload: memoryview) -> bytes:
        if payload.nbytes < _OFF_LOOP_BYTES:
            return self._writer.kv(kv, payload)
        return await asyncio.to_thread(self._writer.kv, kv, payload)

    def _end(self, first: TokenEvent) -> bytes:
        logprobs = None if first.logprobs is None else logprobs_to_proto(first.logprobs)
        return self._writer.end(first.token_id, logprobs, num_cached_tokens=first.num_cached)
