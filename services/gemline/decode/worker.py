"""The decode worker: an engine, the gateways' streams, and prefill workers to ask. Wires its parts together."""

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import grpc.aio

from gemline.cluster.records import ModelCard, Role
from gemline.decode.dispatch import Dispatcher
from gemline.decode.placement import PrefillMode
from gemline.decode.prefill_client import PrefillClient
from gemline.decode.remote_prefill import RemotePrefill, RemoteSettings
from gemline.decode.requests import RequestTable
from gemline.decode.servicer import Servicer
from gemline.engine.events import StepResult, TokenEvent
from gemline.engine.options import EngineOptions
from gemline.engine_host import EngineHost
from gemline.errors import GemlineError, StaleEpoch, Unavailable
from gemline.failpoints import failpoint
from gemline.host import WorkerContext
from gemline.internal.v1.decode_pb2_grpc import add_DecodeServicer_to_server
from gemline.rank_group import Starter
from gemline.rpc.internal_tls import opener
from gemline.signals import Signals
from gemline.transfer.nixl import NixlAgent
from gemline.transfer.transports import KvTransportSetting, Transport, allowed

KvWireDtype = Literal["auto", "bfloat16", "float8_e4m3"]


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What a decode worker serves, and how."""

    model_dir: Path
    served_model_name: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    prefill: PrefillMode = "auto"  # by a prefill worker: whichever is better, always if there is one, never
    kv_transport: KvTransportSetting = "auto"  # by which keys and values may come; gRPC always is one
    kv_wire_dtype: KvWireDtype = "auto"  # of keys and values on their way; auto: the cache's
    starter: Starter | None = None  # of an engine's other ranks; None: they are child processes


class DecodeWorker:
    """A Worker for gemline.host."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._host = EngineHost(options.model_dir, options.engine, self._deliver, self.load, options.starter)
        self._table: RequestTable | None = None
        self._client: PrefillClient | None = None
        self._epoch = 0

    @property
    def role(self) -> Role:
        """What it does."""
        return Role.DECODE

    @property
    def card(self) -> ModelCard:
        """The model it serves."""
        return self._card

    @property
    def backend(self) -> str:
        """What its engine computes with."""
        return self._host.backend

    async def start(self, context: WorkerContext) -> None:
        """Loads the model. Raises the ConfigurationError that says why it cannot."""
        transports = allowed(self._options.kv_transport, is_encrypted=context.internal_tls is not None)
        await self._host.start(context.telemetry)
        self._card = self._host.card(self._options.served_model_name)
        self._context = context
        workers = partial(context.view.workers, Role.PREFILL, self._card.model_id)
        self._client = PrefillClient(workers, self._card, opener(context.internal_tls), transports=transports)
        context.view.on_change(self._client.follow)
        wire_dtype = self._options.kv_wire_dtype.removeprefix("auto")
        agent = NixlAgent() if Transport.NIXL in transports else None
        settings = RemoteSettings(self._options.prefill, wire_dtype, agent)
        remote = RemotePrefill(self._host, self._client, context.telemetry, self._emit, settings)
        dispatcher = Dispatcher(self._host, remote, context.telemetry, self._fail)
        self._table = RequestTable(dispatcher, context.lease_valid, failpoint(os.environ))

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Decode service."""
        add_DecodeServicer_to_server(Servicer(self._requests, lambda: self._epoch, self._host.engine.options), server)

    def epoch_changed(self, epoch: int) -> None:
        """Ends the streams of an epoch whose lease had run out; one that was replaced in time has lost nothing."""
        if self._epoch and not self._context.lease_valid():
            self._requests.close_streams(StaleEpoch(f"the worker's lease of epoch {self._epoch} is over"))
        self._epoch = epoch

    def load(self) -> tuple[int, int]:
        """Requests (running, waiting)."""
        return (0, 0) if self._table is None else self._table.load

    async def signals(self) -> Signals:
        """The engine's, and how long requests waited here for their first token."""
        return await self._host.signals(self._requests.ttft.high(time.monotonic()))

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests; returns when the last one has ended.

        What is left when the time is up goes on elsewhere: its streams are closed with a word that says so.
        """
        self._requests.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._requests.idle.wait()
        finally:
            if not self._requests.idle.is_set():
                self._requests.close_streams(Unavailable("the worker is shutting down"))

    async def stop(self) -> None:
        """Ends every stream, then the engine."""
        if self._table is not None:
            self._table.close_streams(Unavailable("the worker is shutting down"))
        if self._client is not None:
            await self._client.close()
        await self._host.stop()

    def check_health(self) -> None:
        """Raises when the engine is dead or stuck."""
        self._host.check_health()

    @property
    def _requests(self) -> RequestTable:
        if self._table is None:
            raise Unavailable("the worker is not started")
        return self._table

    def _deliver(self, result: StepResult) -> None:
        self._requests.deliver(result)

    def _emit(self, tokens: Iterable[TokenEvent]) -> None:
        self._requests.emit(tokens)

    def _fail(self, seq_id: int, error: GemlineError) -> None:
        self._requests.fail(seq_id, error)
