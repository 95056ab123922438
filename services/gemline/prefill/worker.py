"""The prefill worker: computes prompts for decode workers and streams their keys and values. Never decodes."""

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import grpc.aio

from gemline.cluster.records import ModelCard, Role
from gemline.engine.options import EngineOptions
from gemline.engine.requests import EngineRequest
from gemline.engine_host import EngineHost
from gemline.errors import DeadlineExceeded, StaleEpoch, Unavailable
from gemline.host import WorkerContext
from gemline.internal.v1.prefill_pb2 import KvLayout
from gemline.prefill.progress import ProgressTable
from gemline.prefill.sender import KvSender
from gemline.prefill.servicer import Servicer, Write
from gemline.telemetry import Attributes


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """What a prefill worker serves, and how."""

    model_dir: Path
    served_model_name: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    write_timeout_s: float = 30.0  # for one frame; a decode worker that is slower gives up its prefill


class PrefillWorker:
    """A Worker for gemline.host, and what its servicer calls."""

    def __init__(self, options: PrefillOptions) -> None:
        self._options = options
        self._table = ProgressTable()
        self._host = EngineHost(options.model_dir, options.engine, self._table.deliver, self.load)
        self._seq_ids = count(1)
        self._draining = False
        self.epoch = 0

    @property
    def role(self) -> Role:
        """What it does."""
        return Role.PREFILL

    @property
    def card(self) -> ModelCard:
        """The model it serves."""
        return self._card

    @property
    def backend(self) -> str:
        """What its engine computes with."""
        return self._host.backend

    @property
    def layout(self) -> KvLayout:
        """Of the keys and values it sends."""
        engine = self._host.engine
        return KvLayout(
            model_revision=engine.revision, dtype=engine.options.dtype, quantization=engine.options.quantization
        )

    async def start(self, context: WorkerContext) -> None:
        """Loads the model. Raises the ConfigurationError that says why it cannot."""
        await self._host.start(context.telemetry)
        self._card = self._host.card(self._options.served_model_name)
        self._context = context
        self._sent_bytes = context.telemetry.meter.create_counter(
            "gemline_kv_sent", unit="By", description="Keys and values sent to decode workers"
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Prefill service."""
        Servicer(self).add_to(server)

    def epoch_changed(self, epoch: int) -> None:
        """Streams that were begun under another epoch end before their next frame."""
        self.epoch = epoch

    def load(self) -> tuple[int, int]:
        """Prefills (running, waiting)."""
        return self._table.load

    async def drain(self, timeout_s: float) -> None:
        """Refuses new prefills; returns when the last one has been sent."""
        self._draining = True
        async with asyncio.timeout(timeout_s):
            await self._table.idle.wait()

    async def stop(self) -> None:
        """Ends the engine."""
        await self._host.stop()

    def check_health(self) -> None:
        """Raises when the engine is dead or stuck."""
        self._host.check_health()

    def new_seq_id(self) -> int:
        """A number for one more sequence."""
        return next(self._seq_ids)

    async def run(self, request: EngineRequest, request_id: str, traceparent: str, write: Write) -> None:
        """Prefills and writes every frame; however it ends, the blocks are free within one step."""
        if self._draining:
            raise Unavailable("the prefill worker is shutting down")
        num_tokens = len(request.token_ids)
        attributes: Attributes = {"gemline.request_id": request_id, "gemline.num_tokens": num_tokens}
        sender = KvSender(self._host, request.seq_id, num_tokens, partial(self._write, write, self.epoch))
        progress = self._table.begin(request.seq_id)
        try:
            span = self._context.telemetry.span("prefill", traceparent, attributes) if traceparent else nullcontext()
            with span:
                self._host.thread.submit(request)
                await sender.send(progress)
        finally:
            self._table.end(request.seq_id)
            self._host.thread.cancel(request.seq_id)
            self._sent_bytes.add(sender.num_bytes)

    async def _write(self, write: Write, epoch: int, frame: bytes) -> None:
        if epoch != self.epoch or not self._context.lease_valid():
            raise StaleEpoch(f"the worker's lease of epoch {epoch} is over")
        try:
            async with asyncio.timeout(self._options.write_timeout_s):
                await write(frame)
        except TimeoutError:
            raise DeadlineExceeded(f"the caller took no frame for {self._options.write_timeout_s} s") from None
