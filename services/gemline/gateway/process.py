"""The gateway as a process: Redis, the core and all servers on one event loop, and an orderly end."""

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import uvloop

from gemline import garbage, telemetry
from gemline.cluster.connection import connect
from gemline.cluster.idempotency import IdempotencyStore
from gemline.cluster.keys import ApiKeys
from gemline.cluster.limits import LimitStore
from gemline.cluster.operations import operating
from gemline.cluster.public_prefixes import PublicPrefixes
from gemline.cluster.releases import ReleaseShares
from gemline.cluster.served import ServedElsewhere
from gemline.cluster.session_vault import Vault
from gemline.cluster.sessions import SessionStore
from gemline.cluster.workers import WorkersView
from gemline.gateway.admin import create_admin_app
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_server import PublicServer
from gemline.gateway.http import create_app
from gemline.gateway.http_server import HttpServer
from gemline.gateway.settings import GatewaySettings
from gemline.gateway.tls import CHECK_S, Certificates
from gemline.logs import setup_logging
from gemline.rpc.internal_tls import InternalTls, opener
from gemline.rpc.tls_files import TlsFiles
from gemline.telemetry import Telemetry

log = logging.getLogger(__name__)

_READY_POLL_S = 0.1


class Addresses(NamedTuple):
    """Where the servers listen, as the ready file has it."""

    http: str  # a URL
    grpc: str  # host:port
    admin: str = ""  # a URL; empty: there is no admin API

    def to_json(self) -> str:
        """Those there are."""
        return json.dumps({name: value for name, value in self._asdict().items() if value})


class GatewayProcess:
    """Everything of one gateway, brought up in order and taken down in the opposite one. Used once."""

    def __init__(self, settings: GatewaySettings, own_telemetry: Telemetry | None = None) -> None:
        """Without `own_telemetry` it is set up from the environment."""
        self._settings = settings
        self._telemetry = own_telemetry or telemetry.setup("gateway")
        self._undo = AsyncExitStack()
        self._admin: HttpServer | None = None

    async def start(self) -> Addresses:
        """Listen on all ports; raises the ConfigurationError or Unavailable that says why it cannot."""
        try:
            return await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def drain(self) -> None:
        """Be ready no longer, take no new call, and return when those that run have ended."""
        self._gateway.drain()
        await self._grpc.set_serving(False)
        fronts = [self._http] if self._admin is None else [self._http, self._admin]
        await asyncio.gather(*(front.stop() for front in fronts), self._grpc.stop(self._settings.drain_timeout_s))

    async def stop(self) -> None:
        """End what still runs and close everything. A second call does nothing."""
        await self._undo.aclose()

    async def _start(self) -> Addresses:
        self._undo.push_async_callback(asyncio.to_thread, self._telemetry.shutdown)
        await self._start_core()
        tls = self._certificates()
        app = create_app(self._gateway, self._settings, self._answers)
        self._grpc = PublicServer(self._gateway, self._settings, tls.grpc_credentials() if tls else None)
        self._http = HttpServer(app, self._settings, tls=tls.context if tls else None)
        for server in (self._grpc, self._http):
            await server.start()
            self._undo.push_async_callback(server.stop)
        addresses = Addresses(
            f"{'https' if tls else 'http'}://{self._http.address}", self._grpc.address, await self._start_admin(tls)
        )
        watch = asyncio.create_task(self._watch_readiness(addresses), name="readiness")
        self._undo.callback(watch.cancel)
        return addresses

    def _certificates(self) -> Certificates | None:
        """Of the ports that are not internal, if there are any; looked at again while the process runs."""
        settings = self._settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        tls = Certificates(TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca))
        refreshing = asyncio.create_task(_refresh(tls), name="certificates")
        self._undo.callback(refreshing.cancel)
        return tls

    async def _start_admin(self, tls: Certificates | None) -> str:
        """Its URL, empty when it is off. Over Redis connections of its own: an export takes none from requests."""
        if not self._settings.admin_key:
            return ""
        operations = await self._undo.enter_async_context(operating(self._settings.redis_url))
        app = create_admin_app(operations, self._settings)
        self._admin = HttpServer(app, self._settings, "admin", tls.context if tls else None)
        await self._admin.start()
        self._undo.push_async_callback(self._admin.stop)
        return f"{'https' if tls else 'http'}://{self._admin.address}"

    async def _start_core(self) -> None:
        files = self._settings.internal_tls
        open_channel = opener(None if files is None else InternalTls(files))
        redis = connect(self._settings.redis_url)
        self._undo.push_async_callback(redis.aclose)
        keys = ApiKeys(redis, self._settings.keys_file)
        await keys.access_of("")  # an unreadable file of keys is found now, not by the first user
        vault = Vault.from_text(self._settings.session_key)
        store = SessionStore(redis, secret=self._settings.session_secret.encode(), vault=vault)
        limits_redis = connect(self._settings.redis_url, retries=0)  # a request must not be counted twice
        self._undo.push_async_callback(limits_redis.aclose)
        limits = LimitStore(limits_redis)
        view = WorkersView(redis)
        await view.start()
        self._undo.push_async_callback(view.stop)
        self._answers = IdempotencyStore(redis)
        stores = (store, PublicPrefixes(redis), limits, ServedElsewhere(redis), ReleaseShares(redis))
        self._gateway = Gateway(self._settings, view, keys, self._telemetry, *stores, open_channel)
        await self._gateway.start()
        self._undo.push_async_callback(self._gateway.stop)

    async def _watch_readiness(self, addresses: Addresses) -> None:
        was_ready = was_ever_ready = False
        while True:
            if (is_ready := self._gateway.ready()) != was_ready:
                await self._grpc.set_serving(is_ready)
                was_ready = is_ready
            if is_ready and not was_ever_ready and self._settings.ready_file is not None:
                _write(self._settings.ready_file, addresses)
            was_ever_ready = was_ever_ready or is_ready
            await asyncio.sleep(_READY_POLL_S)


async def _refresh(tls: Certificates) -> None:
    while True:
        await asyncio.sleep(CHECK_S)
        tls.refresh()


def run_gateway(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop; a second signal skips what is left of the drain."""
    setup_logging("gateway")
    # A streamed token costs less on uvloop than on asyncio's own loop.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_signal(GatewayProcess(settings)))


async def _serve_until_signal(process: GatewayProcess) -> None:
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    addresses = await process.start()
    garbage.started()
    log.info("listening on %s and, for gRPC, %s", addresses.http, addresses.grpc)
    if addresses.admin:
        log.info("the admin API listens on %s", addresses.admin)
    try:
        await signals.get()
        drain, impatience = asyncio.create_task(process.drain()), asyncio.create_task(signals.get())
        await asyncio.wait([drain, impatience], return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        impatience.cancel()
    finally:
        await process.stop()


def _write(file: Path, addresses: Addresses) -> None:
    """All at once: whoever waits for the file must not read half of it."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_text(addresses.to_json())
        partial.replace(file)
    except OSError as error:  # requests are answered all the same
        log.error("ready_file %s cannot be written: %s", file, error.strerror)
