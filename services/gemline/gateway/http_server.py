"""An HTTP server: uvicorn on a socket of ours, under our signals, with limits of its own. Knows no route."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any, Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gemline.errors import ConfigurationError
from gemline.gateway.settings import GatewaySettings, joined

MAX_HEAD_BYTES = 64 * 1024
ARRIVAL_TIMEOUT_S = 60.0  # from a connection, or from a request's first byte, to that request's last one
STALL_TIMEOUT_S = 30.0  # a client that takes nothing of what it is sent for so long is gone
_BACKLOG = 2048


class HttpServer:
    """Listens from `start` to `stop`."""

    def __init__(
        self,
        app: Any,
        settings: GatewaySettings,
        front: Literal["http", "admin"] = "http",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`front`: which host and port of the settings are its own. Without `tls` it speaks plain HTTP."""
        config = _Config(
            tls,
            app=app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=int(settings.drain_timeout_s),
        )
        self._server = _Server(config)
        self._host: str = getattr(settings, f"{front}_host")
        self._port: int = getattr(settings, f"{front}_port")
        self._front = front
        self._task: asyncio.Task[None] | None = None
        self.address = ""  # host:port

    async def start(self) -> None:
        """Bind and serve; raises ConfigurationError when the port is taken."""
        listener = _bound(self._host, self._port, f"{self._front}_port")
        self.address = joined(self._host, listener.getsockname()[1])
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name=f"{self._front} server")

    async def stop(self) -> None:
        """Take no more connections; requests that run have drain_timeout_s to end."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which by itself takes a head of any size and waits for a request for ever, key or no key."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._num_head_bytes = 0  # since the last bytes of a body: of a head, or of what follows a chunked body
        self._arrival = self.loop.call_later(ARRIVAL_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrival.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has at most {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arrival.cancel()
        self._arrival = self.loop.call_later(ARRIVAL_TIMEOUT_S, self.transport.close)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._num_head_bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._num_head_bytes = 0
        self._arrival.cancel()


class _Config(uvicorn.Config):
    """With a context of ours, whose certificate may change, instead of files that uvicorn reads once."""

    def __init__(self, tls: ssl.SSLContext | None, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def load(self) -> None:
        super().load()
        self.ssl = self._tls


class _Server(uvicorn.Server):
    """Leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _bound(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The accepted connections inherit it; their end then reaches whoever answers, as if the client had left.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(STALL_TIMEOUT_S * 1000))
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # whoever connects from now on waits for uvicorn, and is not refused
    except OSError as error:
        listener.close()
        message = f"{option}: cannot listen on {joined(host, port)}: {error.strerror}"
        raise ConfigurationError(message, param=option) from error
    return listener
