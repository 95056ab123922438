"""The decode worker: an engine, the gateways' streams, and prefill workers to ask. Wires its parts together."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc.aio

from gemline.cluster.records import ModelCard, Role
from gemline.decode.dispatch import Dispatcher
from gemline.decode.prefill_client import PrefillClient
from gemline.decode.remote_prefill import RemotePrefill
from gemline.decode.requests import RequestTable
from gemline.decode.servicer import Servicer
from gemline.engine.events import StepResult, TokenEvent
from gemline.engine.options import EngineOptions
from gemline.engine_host import EngineHost
from gemline.errors import GemlineError, StaleEpoch, Unavailable
from gemline.host import WorkerContext
from gemline.internal.v1.decode_pb2_grpc import add_DecodeServicer_to_server


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What a decode worker serves, and how."""

    model_dir: Path
    served_model_name: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    prefill: Literal["remote", "local"] = "remote"  # remote: by a prefill worker, as long as there is one


class DecodeWorker:
    """A Worker for gemline.host."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._host = EngineHost(options.model_dir, options.engine, self._deliver, self.load)
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
        await self._host.start(context.telemetry)
        self._card = self._host.card(self._options.served_model_name)
        self._context = context
        self._client = PrefillClient(lambda: context.view.workers(Role.PREFILL, self._card.model_id), self._card)
        context.view.on_change(self._client.follow)
        remote = RemotePrefill(self._host, self._client, context.telemetry, self._emit)
        dispatcher = Dispatcher(
            self._host,
            remote,
            context.telemetry,
            self._fail,
            prefill_remotely=self._options.prefill == "remote",
        )
        self._table = RequestTable(dispatcher, context.lease_valid)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Decode service."""
        add_DecodeServicer_to_server(Servicer(self._requests, lambda: self._epoch), server)

    def epoch_changed(self, epoch: int) -> None:
        """Ends the streams of an epoch whose lease had run out; one that was replaced in time has lost nothing."""
        if self._epoch and not self._context.lease_valid():
            self._requests.close_streams(StaleEpoch(f"the worker's lease of epoch {self._epoch} is over"))
        self._epoch = epoch

    def load(self) -> tuple[int, int]:
        """Requests (running, waiting)."""
        return (0, 0) if self._table is None else self._table.load

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests; returns when the last one has ended."""
        self._requests.draining = True
        async with asyncio.timeout(timeout_s):
            await self._requests.idle.wait()

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
