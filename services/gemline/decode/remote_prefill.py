"""Has a prompt prefilled by another worker and brings its keys and values into this engine, whole or not at all."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from gemline.cluster.records import WorkerRecord
from gemline.decode.kv_import import KvImport
from gemline.decode.kv_metrics import KvMetrics, Transferred, transferred
from gemline.decode.placement import Here, Placement, PrefillMode, place
from gemline.decode.prefill_client import PrefillClient
from gemline.engine.engine import Engine, Reserved
from gemline.engine.events import TokenEvent
from gemline.engine.requests import EngineRequest
from gemline.engine.roster import UnknownSequence
from gemline.engine_host import EngineHost
from gemline.errors import GemlineError, Overloaded
from gemline.internal.v1.prefill_pb2 import PrefillEnd, PrefillRequest
from gemline.rpc.convert import logprobs_from_proto, sampling_to_proto
from gemline.telemetry import Attributes, Telemetry
from gemline.transfer.fetch import Fetch
from gemline.transfer.frames import TransferError
from gemline.transfer.nixl import NixlAgent
from gemline.transfer.offering import Offer
from gemline.transfer.receive import FrameReader

_RESERVE_POLL_S = 0.01

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """When prompts are prefilled elsewhere, and how their keys and values come."""

    mode: PrefillMode = "auto"
    wire_dtype: str = ""  # empty: the cache's
    agent: NixlAgent | None = None


class RemotePrefill:
    """`emit` takes first tokens, on the event loop."""

    def __init__(
        self,
        host: EngineHost,
        client: PrefillClient,
        telemetry: Telemetry,
        emit: Callable[[Iterable[TokenEvent]], None],
        settings: RemoteSettings,
    ) -> None:
        self._host = host
        self._client = client
        self._telemetry = telemetry
        self._emit = emit
        self._settings = settings
        self._turn = asyncio.Lock()
        self._num_in_line = 0
        self._prefills = telemetry.meter.create_counter(
            "gemline_prefills", description="Prompts, by where they were prefilled and why there"
        )
        self._metrics = KvMetrics(telemetry)

    async def run(self, request: EngineRequest, request_id: str, traceparent: str) -> None:
        """Until the sequence decodes, or is queued to be prefilled here. Raises what makes the request impossible.

        Whoever cancels this cancels the sequence in the engine too.
        """
        placement = await self._place(request)
        if not placement.is_remote:
            return self._prefills.add(1, {"where": "local", "reason": placement.reason})
        reserved = await self._reserve(request)
        worker = self._client.pick()
        if worker is None:
            return await self._abandon(request, "local", "no_worker")
        try:
            await self._import(worker, request, reserved.num_cached, request_id, traceparent)
        except Exception as error:
            self._log_failure(worker, request_id, error)
            return await self._abandon(request, "fallback", "failed")
        self._prefills.add(1, {"where": "remote", "reason": placement.reason})

    async def _place(self, request: EngineRequest) -> Placement:
        """Decides between two steps, and queues here at once what is to be computed here: no step is lost by asking.

        Raises what makes the request impossible.
        """
        worker, num_tokens = self._client.pick(), len(request.token_ids)
        there = None if worker is None else self._client.outlook(worker, num_tokens)

        def decide(engine: Engine) -> Placement:
            outlook = engine.outlook(request)
            here = Here(
                num_missing=num_tokens - outlook.num_cached,
                num_queued=outlook.num_queued_tokens,
                num_streams=outlook.num_streams,
                tokens_per_s=outlook.tokens_per_s,
            )
            placement = place("never" if request.params.prompt_logprobs else self._settings.mode, here, there)
            if not placement.is_remote:
                engine.add(request)
            return placement

        return await self._host.call(decide)

    async def _reserve(self, request: EngineRequest) -> Reserved:
        """Blocks for the prompt, first come, first served. Raises when the request can never have them."""
        if self._num_in_line >= self._host.options.max_waiting:
            raise Overloaded(f"{self._num_in_line} requests wait already, as many as may; try again later")
        self._num_in_line += 1
        try:
            async with self._turn:
                # Steps, cancels and imports all make room: to ask is simpler than to hear of each.
                while (reserved := await self._host.call(lambda engine: engine.reserve(request))) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_RESERVE_POLL_S)
                return reserved
        finally:
            self._num_in_line -= 1

    async def _import(
        self, worker: WorkerRecord, request: EngineRequest, num_held: int, request_id: str, traceparent: str
    ) -> None:
        num_tokens = len(request.token_ids)
        attributes: Attributes = {"gemline.worker_id": worker.worker_id, "gemline.num_tokens": num_tokens}
        span = self._telemetry.span("decode.fetch_kv", traceparent, attributes) if traceparent else None
        with span or nullcontext():
            offer = self._offer(worker)
            message = self._message(worker, request, num_held, request_id, offer)
            async with self._client.call(worker, message, span.traceparent if span else "") as call:
                done = await self._fetch(worker, call, offer, request, num_held)
            self._metrics.imported(done, span)
            self._client.learn(worker, done.end)
            await self._host.call(partial(self._finish, request.seq_id, done.end))

    async def _fetch(
        self, worker: WorkerRecord, call: AsyncIterator[bytes], offer: Offer, request: EngineRequest, num_held: int
    ) -> Transferred:
        engine, num_tokens = self._host.engine, len(request.token_ids)
        form = engine.kv_form(self._settings.wire_dtype)
        reader = FrameReader(self._host.needed(num_tokens, num_held), form.token_bytes)
        with Fetch(call, offer, reader) as fetch:
            try:
                await KvImport(self._host, request.seq_id, form).run(fetch)
            finally:
                self._client.avoid(worker, fetch.failed)
                self._metrics.received(fetch, reader.num_bytes)
            if reader.end is None:
                raise TransferError("the frames ended before the end frame")
            held_bytes = num_tokens * engine.kv_form().token_bytes * engine.config.num_hidden_layers
            return transferred(fetch, reader.end, held_bytes)

    def _offer(self, worker: WorkerRecord) -> Offer:
        host = worker.address.rpartition(":")[0].strip("[]")
        return Offer(self._client.transports(worker), host, self._host.movers, self._settings.agent)

    def _finish(self, seq_id: int, end: PrefillEnd, engine: Engine) -> None:
        """In the engine's thread. The event is posted from here, or the next step's would overtake it."""
        event = engine.finish_import(
            seq_id, end.token_id, logprobs_from_proto(end.logprobs), num_cached=end.num_cached_tokens
        )
        self._host.post(partial(self._emit, (event,)))

    async def _abandon(self, request: EngineRequest, where: str, reason: str) -> None:
        try:
            await self._host.call(lambda engine: engine.abandon_import(request.seq_id))
        except UnknownSequence:  # cancelled meanwhile
            return
        self._prefills.add(1, {"where": where, "reason": reason})

    def _message(
        self, worker: WorkerRecord, request: EngineRequest, num_held: int, request_id: str, offer: Offer
    ) -> PrefillRequest:
        return PrefillRequest(
            epoch=worker.epoch,
            request_id=request_id,
            token_ids=request.token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            sampling=sampling_to_proto(request.params),
            cache_salt=request.cache_salt,
            num_public_tokens=request.num_public_tokens,
            num_held_tokens=num_held,
            offer=offer.message,
            wire_dtype=self._settings.wire_dtype,
            layout=self._host.layout,
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
