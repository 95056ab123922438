"""Has a prompt prefilled by another worker and brings its keys and values into this engine, whole or not at all."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial

from gemline.cluster.records import WorkerRecord
from gemline.decode.prefill_client import PrefillClient
from gemline.engine.engine import Engine
from gemline.engine.events import TokenEvent
from gemline.engine.requests import EngineRequest
from gemline.engine.roster import UnknownSequence
from gemline.engine_host import EngineHost
from gemline.errors import GemlineError, Overloaded
from gemline.internal.v1.prefill_pb2 import KvLayout, PrefillEnd, PrefillRequest
from gemline.rpc.convert import logprobs_from_proto, sampling_to_proto
from gemline.telemetry import Attributes, Telemetry
from gemline.transfer.frames import KvFrame, TransferError
from gemline.transfer.receive import FrameReader

# Frames on their way into the engine, of up to 4 MiB each; the stream is not read further while there are so many.
_MAX_IMPORTS = 8
# A frame from this size on is checked in a thread: its checksum would hold up the event loop.
_OFF_LOOP_BYTES = 128 * 1024
_RESERVE_POLL_S = 0.01

logger = logging.getLogger(__name__)


class RemotePrefill:
    """`emit` takes first tokens, on the event loop."""

    def __init__(
        self,
        host: EngineHost,
        client: PrefillClient,
        telemetry: Telemetry,
        emit: Callable[[Iterable[TokenEvent]], None],
    ) -> None:
        self._host = host
        self._client = client
        self._telemetry = telemetry
        self._emit = emit
        self._turn = asyncio.Lock()
        self._num_in_line = 0
        meter = telemetry.meter
        self._prefills = meter.create_counter("gemline_prefills", description="Prompts, by where they were prefilled")
        self._received_bytes = meter.create_counter(
            "gemline_kv_received", unit="By", description="Keys and values received from prefill workers"
        )

    async def run(self, request: EngineRequest, request_id: str, traceparent: str) -> None:
        """Until the sequence decodes, or is queued to be prefilled here. Raises what makes the request impossible.

        Whoever cancels this cancels the sequence in the engine too.
        """
        if self._client.pick() is None:
            return self.prefill_here(request)
        await self._reserve(request)
        worker = self._client.pick()
        if worker is None:
            return await self._abandon(request, "local")
        try:
            await self._import(worker, request, request_id, traceparent)
        except Exception as error:
            self._log_failure(worker, request_id, error)
            return await self._abandon(request, "fallback")
        self._prefills.add(1, {"where": "remote"})

    def prefill_here(self, request: EngineRequest) -> None:
        """Queues the request in this engine."""
        self._host.thread.submit(request)
        self._prefills.add(1, {"where": "local"})

    async def _reserve(self, request: EngineRequest) -> None:
        """Blocks for the prompt, first come, first served. Raises when the request can never have them."""
        if self._num_in_line >= self._host.options.max_waiting:
            raise Overloaded(f"{self._num_in_line} requests wait already, as many as may; try again later")
        self._num_in_line += 1
        try:
            async with self._turn:
                # Steps, cancels and imports all make room: to ask is simpler than to hear of each.
                while not await self._host.call(lambda engine: engine.reserve(request)):  # noqa: ASYNC110
                    await asyncio.sleep(_RESERVE_POLL_S)
        finally:
            self._num_in_line -= 1

    async def _import(self, worker: WorkerRecord, request: EngineRequest, request_id: str, traceparent: str) -> None:
        num_tokens = len(request.token_ids)
        reader = FrameReader(self._host.needed(num_tokens), self._host.token_bytes)
        attributes: Attributes = {"gemline.worker_id": worker.worker_id, "gemline.num_tokens": num_tokens}
        span = self._telemetry.span("decode.fetch_kv", traceparent, attributes) if traceparent else None
        with span or nullcontext():
            message = self._message(worker, request, request_id)
            try:
                async with self._client.call(worker, message, span.traceparent if span else "") as frames:
                    end = await self._import_frames(request.seq_id, frames, reader)
            finally:
                self._received_bytes.add(reader.num_bytes)
            await self._host.call(partial(self._finish, request.seq_id, end))

    async def _import_frames(self, seq_id: int, frames: AsyncIterator[bytes], reader: FrameReader) -> PrefillEnd:
        """Into the engine as they come, while the prefill still goes on. Returns when all of them are there."""
        imports: deque[Future[None]] = deque()
        async for data in frames:
            frame = await _read(reader, data)
            if frame is None:
                break
            if len(imports) == _MAX_IMPORTS:
                await asyncio.wrap_future(imports.popleft())
            imports.append(self._host.thread.call(partial(_import_frame, seq_id, frame)))
        if reader.end is None:
            raise TransferError("the stream ended before its end frame")
        for waiting in imports:
            await asyncio.wrap_future(waiting)
        return reader.end

    def _finish(self, seq_id: int, end: PrefillEnd, engine: Engine) -> None:
        """In the engine's thread. The event is posted from here, or the next step's would overtake it."""
        event = engine.finish_import(
            seq_id, end.token_id, logprobs_from_proto(end.logprobs), num_cached=end.num_cached_tokens
        )
        self._host.post(partial(self._emit, (event,)))

    async def _abandon(self, request: EngineRequest, where: str) -> None:
        try:
            await self._host.call(lambda engine: engine.abandon_import(request.seq_id))
        except UnknownSequence:  # cancelled meanwhile
            return
        self._prefills.add(1, {"where": where})

    def _message(self, worker: WorkerRecord, request: EngineRequest, request_id: str) -> PrefillRequest:
        engine = self._host.engine
        return PrefillRequest(
            epoch=worker.epoch,
            request_id=request_id,
            token_ids=request.token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            sampling=sampling_to_proto(request.params),
            cache_salt=request.cache_salt,
            layout=KvLayout(
                model_revision=engine.revision, dtype=engine.options.dtype, quantization=engine.options.quantization
            ),
        )

    def _log_failure(self, worker: WorkerRecord, request_id: str, error: Exception) -> None:
        known = isinstance(error, GemlineError | UnknownSequence)
        logger.warning(
            "request %s: prefill on %s failed (%s); prefilling here",
            request_id,
            worker.worker_id,
            error,
            exc_info=None if known else error,
        )


async def _read(reader: FrameReader, data: bytes) -> KvFrame | None:
    return reader.read(data) if len(data) < _OFF_LOOP_BYTES else await asyncio.to_thread(reader.read, data)


def _import_frame(seq_id: int, frame: KvFrame, engine: Engine) -> None:
    engine.import_kv(seq_id, *frame.range, frame.payload)
