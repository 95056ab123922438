"""Runs one worker: its gRPC server, lease, view of the others, telemetry and orderly end. Knows no role's work."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from gemline import garbage, telemetry
from gemline.cluster.connection import connect
from gemline.cluster.records import ModelCard, Role, WorkerRecord
from gemline.cluster.workers import WorkerLease, WorkersView
from gemline.errors import ConfigurationError, Unavailable
from gemline.rpc.health import Health
from gemline.rpc.internal_tls import InternalTls, check_caller
from gemline.rpc.malformed import RefuseMalformed
from gemline.rpc.options import server_options
from gemline.rpc.status import ErrorInterceptor
from gemline.rpc.tls_files import TlsFiles
from gemline.signals import Signals
from gemline.telemetry import Telemetry

_EVERY_INTERFACE = ("0.0.0.0", "[::]")  # noqa: S104
_HEALTH_PERIOD_S = 1.0
_STOP_GRACE_S = 0.5  # for answers on their way; streams that stay open never end by themselves


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker gets from its host."""

    view: WorkersView
    telemetry: Telemetry
    lease_valid: Callable[[], bool]  # False: this worker may have been given up; emit nothing. Any thread may ask
    internal_tls: InternalTls | None = None  # of calls to other workers; None: they go in clear


class Worker(Protocol):
    """One worker of any role. All methods run on the host's event loop, none may block it."""

    @property
    def role(self) -> Role:
        """What it does."""

    @property
    def card(self) -> ModelCard:
        """The model it serves; readable once `start` has returned."""

    @property
    def backend(self) -> str:
        """What it computes with, empty if nothing; readable once `start` has returned."""

    async def start(self, context: WorkerContext) -> None:
        """Loads, and is ready to serve when it returns. Raises a GemlineError that says why it cannot."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its services; the server is not started yet."""

    def epoch_changed(self, epoch: int) -> None:
        """The life others will call from now on; work of an earlier one must end. Comes before the first call too."""

    def load(self) -> tuple[int, int]:
        """(num_running, num_waiting) requests."""

    async def signals(self) -> Signals:
        """What an autoscaler needs to know. From memory, or a moment's question to the engine."""

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new; returns when the work is done, after `timeout_s` at the latest."""

    async def stop(self) -> None:
        """Drops what is left and frees everything. Called once if `start` was called, even when that failed."""

    def check_health(self) -> None:
        """Raises when this worker can serve no more and should be replaced. From memory, never blocking."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Where a worker listens and registers."""

    redis_url: str
    bind: str = "127.0.0.1"
    advertise: str | None = None  # the host others reach it by; None: `bind`, or this machine's address for 0.0.0.0
    port: int = 0  # 0: any free one
    metrics_port: int | None = 0  # None: no /metrics
    drain_timeout_s: float = 30.0
    release: str = ""  # in the worker's record
    internal_tls: TlsFiles | None = None  # of the server, and of calls to other workers; None: all in clear

    @property
    def advertised_host(self) -> str:
        """The host part of the address in the worker's record."""
        if self.advertise is not None:
            return self.advertise
        return _outward_address() if self.bind in _EVERY_INTERFACE else self.bind


def _outward_address() -> str:
    """This machine's address on the way out; the host name often leads to a loopback one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


class WorkerHost:
    """Brings one worker up, keeps it registered, and takes it down in order. Used once."""

    def __init__(self, worker: Worker, settings: HostSettings, own_telemetry: Telemetry | None = None) -> None:
        """The host shuts `own_telemetry` down; without it, it is set up from the environment."""
        self._worker = worker
        self._settings = settings
        self._telemetry = own_telemetry or telemetry.setup(worker.role.value)
        self._lease: WorkerLease | None = None
        self._health: Health | None = None
        self._undo = AsyncExitStack()  # what has been started, to be stopped in the opposite order

    @property
    def record(self) -> WorkerRecord:
        """What the worker's lease says now. Raises Unavailable before `start`."""
        return self._registered().record

    async def start(self) -> WorkerRecord:
        """Loads, listens, registers. On any failure everything begun is taken down and the error raised."""
        try:
            return await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def drain(self) -> None:
        """Tells everybody to send nothing new and lets the worker finish, for drain_timeout_s at most."""
        lease = self._registered()
        if self._health is not None:
            await self._health.set_serving(False)
        await lease.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._worker.drain(self._settings.drain_timeout_s)

    async def stop(self) -> None:
        """Closes the server, withdraws the lease, stops the worker. A second call does nothing."""
        await self._undo.aclose()

    def check_health(self) -> None:
        """Raises when the worker should be replaced. Redis being away is no reason."""
        self._registered().check()
        self._worker.check_health()

    async def signals(self) -> Signals:
        """What the worker tells an autoscaler."""
        return await self._worker.signals()

    def _registered(self) -> WorkerLease:
        if self._lease is None:
            raise Unavailable("the worker is not started")
        return self._lease

    def _lease_valid(self) -> bool:
        return self._lease is not None and self._lease.valid

    async def _start(self) -> WorkerRecord:
        self._undo.push_async_callback(asyncio.to_thread, self._telemetry.shutdown)
        files = self._settings.internal_tls
        tls = None if files is None else InternalTls(files)
        redis = connect(self._settings.redis_url)
        self._undo.push_async_callback(redis.aclose)
        view = WorkersView(redis)
        await view.start()
        self._undo.push_async_callback(view.stop)
        self._undo.push_async_callback(self._worker.stop)
        await self._worker.start(WorkerContext(view, self._telemetry, self._lease_valid, tls))
        self._undo.push_async_callback(self._withdraw)  # after the server: without a lease it may not even refuse
        record = self._new_record(await self._serve(tls))
        self._lease = WorkerLease(redis, record, on_epoch=self._worker.epoch_changed, load=self._worker.load)
        await self._lease.register()
        return self._lease.record

    async def _withdraw(self) -> None:
        if self._lease is not None:
            await self._lease.withdraw()

    async def _serve(self, tls: InternalTls | None) -> int:
        guard = ErrorInterceptor() if tls is None else ErrorInterceptor(admit=check_caller)
        server = grpc.aio.server(interceptors=[guard, RefuseMalformed()], options=server_options())
        self._undo.push_async_callback(server.stop, _STOP_GRACE_S)
        self._worker.register(server)
        # All our worker services are named alike, so the host need not be told.
        self._health = Health(server, [f"gemline.internal.v1.{self._worker.role.value.title()}"])
        credentials = None if tls is None else tls.server_credentials()
        port = bind_server(server, self._settings.bind, self._settings.port, credentials)
        await server.start()
        await self._health.set_serving(True)
        return port

    def _new_record(self, port: int) -> WorkerRecord:
        host = self._settings.advertised_host
        metrics_address = ""
        if self._settings.metrics_port is not None:
            metrics_address = f"{host}:{self._serve_metrics(self._settings.metrics_port)}"
        return WorkerRecord(
            worker_id=f"{self._worker.role.value}-{secrets.token_hex(6)}",
            role=self._worker.role,
            address=f"{host}:{port}",
            model=self._worker.card,
            pid=os.getpid(),
            metrics_address=metrics_address,
            backend=self._worker.backend,
            release=self._settings.release,
        )

    def _serve_metrics(self, port: int) -> int:
        bind = self._settings.bind
        try:
            return int(self._telemetry.start_metrics_server(bind, port).rpartition(":")[2])
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {bind}:{port} for metrics: {error}", param="metrics_port"
            ) from error


def bind_server(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Binds the server, gives the port; without credentials it speaks in clear. Raises ConfigurationError when the
    port is taken.
    """
    try:
        if credentials is None:
            return server.add_insecure_port(f"{host}:{port}")
        return server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: the port is taken or not ours", param="port"
        ) from error


async def run_until_signal(host: WorkerHost) -> None:
    """Serves until SIGTERM or SIGINT, then drains and stops; a second signal skips what is left of the drain.

    Raises what `check_health` raised when the worker broke, after stopping, so that the process ends with an error.
    """
    asked, pressed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (pressed if asked.is_set() else asked).set())
    try:
        if await _done_before(asked, host.start()):
            garbage.started()
            await _done_before(asked, watch_health(host))
            await _done_before(pressed, host.drain())
    finally:
        await host.stop()
        garbage.ending()


async def watch_health(host: WorkerHost) -> None:
    """Until the worker breaks: then raises what `check_health` raised."""
    while True:
        await asyncio.sleep(_HEALTH_PERIOD_S)
        host.check_health()


async def _done_before(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Whether `work` was done before the event; if not it has been cancelled. Raises what it raises."""
    task, waiter = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    task.result()
    return True
