"""The public HTTP server: uvicorn on a socket of ours, under our signals. Knows no route."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from gemline.errors import ConfigurationError
from gemline.gateway.settings import GatewaySettings, joined

_BACKLOG = 2048


class HttpServer:
    """Listens from `start` to `stop`."""

    def __init__(self, app: Any, settings: GatewaySettings) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
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
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self.address = ""  # host:port

    async def start(self) -> None:
        """Bind and serve; raises ConfigurationError when the port is taken."""
        listener = _bound(self._settings.http_host, self._settings.http_port)
        self.address = joined(self._settings.http_host, listener.getsockname()[1])
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name="http server")

    async def stop(self) -> None:
        """Take no more connections; requests that run have drain_timeout_s to end."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


class _Server(uvicorn.Server):
    """Leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # whoever connects from now on waits for uvicorn, and is not refused
    except OSError as error:
        listener.close()
        message = f"http_port: cannot listen on {joined(host, port)}: {error.strerror}"
        raise ConfigurationError(message, param="http_port") from error
    return listener
