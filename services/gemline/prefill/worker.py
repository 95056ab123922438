"""The prefill worker: computes prompts for decode workers and streams their keys and values. Never decodes."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from gemline.cluster.records import ModelCard, Role
from gemline.engine.options import EngineOptions
from gemline.engine_host import EngineHost
from gemline.errors import Unavailable
from gemline.host import WorkerContext
from gemline.internal.v1.prefill_pb2 import KvLayout
from gemline.prefill.calls import Calls, Order
from gemline.prefill.progress import ProgressTable
from gemline.prefill.servicer import Servicer
from gemline.rank_group import Starter
from gemline.signals import Signals
from gemline.transfer.listener import Listener
from gemline.transfer.nixl import NixlAgent
from gemline.transfer.opening import Doors
from gemline.transfer.outlet import Write
from gemline.transfer.transports import KvTransportSetting, Transport, allowed


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """What a prefill worker serves, and how."""

    model_dir: Path
    served_model_name: str
    engine: EngineOptions = field(default_factory=EngineOptions)
    write_timeout_s: float = 30.0  # for one frame; a decode worker that is slower gives up its prefill
    kv_transport: KvTransportSetting = "auto"  # by which keys and values may leave; gRPC always is one
    kv_bind: str = "127.0.0.1"  # address to listen on for whoever fetches them: the gRPC server's
    kv_port: int = 0  # and the port; 0: any free one
    starter: Starter | None = None  # of an engine's other ranks; None: they are child processes


class PrefillWorker:
    """A Worker for gemline.host, and what its servicer calls."""

    def __init__(self, options: PrefillOptions) -> None:
        self._options = options
        self._table = ProgressTable()
        self._host = EngineHost(options.model_dir, options.engine, self._table.deliver, self.load, options.starter)
        self._calls: Calls | None = None
        self._listener: Listener | None = None
        self._draining = False

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
        return self._host.layout

    async def start(self, context: WorkerContext) -> None:
        """Loads the model. Raises the ConfigurationError that says why it cannot."""
        transports = allowed(self._options.kv_transport, is_encrypted=context.internal_tls is not None)
        await self._host.start(context.telemetry)
        self._card = self._host.card(self._options.served_model_name)
        doors = self._open_doors(transports)
        timeout_s = self._options.write_timeout_s
        self._calls = Calls(self._host, self._table, context, doors, transports, timeout_s)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Prefill service."""
        Servicer(self).add_to(server)

    def epoch_changed(self, epoch: int) -> None:
        """Streams that were begun under another epoch end before their next frame."""
        self._started().epoch = epoch

    @property
    def epoch(self) -> int:
        """The worker's present life."""
        return self._started().epoch

    def load(self) -> tuple[int, int]:
        """Prefills (running, waiting)."""
        return self._table.load

    async def signals(self) -> Signals:
        """The engine's, and how long prompts took here to be computed."""
        return await self._host.signals(self._started().prefill_times.high(time.monotonic()))

    async def drain(self, timeout_s: float) -> None:
        """Refuses new prefills; returns when the last one has been sent."""
        self._draining = True
        async with asyncio.timeout(timeout_s):
            await self._table.idle.wait()

    async def stop(self) -> None:
        """Lets nobody in any more and ends the engine."""
        if self._listener is not None:
            await self._listener.close()
        await self._host.stop()

    def check_health(self) -> None:
        """Raises when the engine is dead or stuck."""
        self._host.check_health()

    def new_seq_id(self) -> int:
        """A number for one more sequence."""
        return self._started().new_seq_id()

    async def run(self, order: Order, write: Write) -> None:
        """Prefills, sends what was ordered, and writes the end. Raises Unavailable while the worker drains."""
        if self._draining:
            raise Unavailable("the prefill worker is shutting down")
        await self._started().run(order, write)

    def _open_doors(self, transports: frozenset[Transport]) -> Doors:
        if not transports:
            return Doors(self._host.movers)
        listener = self._listener = Listener(self._host.movers)
        if Transport.SHM in transports:
            listener.listen_locally()
        if transports - {Transport.SHM}:
            listener.listen(self._options.kv_bind, self._options.kv_port)
        agent = NixlAgent() if Transport.NIXL in transports else None
        return Doors(self._host.movers, listener, agent)

    def _started(self) -> Calls:
        if self._calls is None:
            raise Unavailable("the worker is not started")
        return self._calls
