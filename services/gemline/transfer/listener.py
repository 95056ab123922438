"""Where callers fetch keys and values: takes their connections and tells whose each is. Knows no frame."""

from __future__ import annotations  # a Future's parameter is in the stubs alone

import asyncio
import logging
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from gemline.errors import ConfigurationError
from gemline.transfer.connection import Connection
from gemline.transfer.frames import TransferError
from gemline.transfer.handshake import SETUP_TIMEOUT_S, hear_hello

# Connections that have not said hello yet; one more is closed at once.
_MAX_STRANGERS = 64
_ACCEPT_PAUSE_S = 0.1

logger = logging.getLogger(__name__)


class Expected:
    """A call whose caller is awaited, over the TCP port or over the local socket."""

    def __init__(self, token: bytes, *, is_local: bool) -> None:
        self.call_id = secrets.randbits(63)
        self.token = token
        self._is_local = is_local
        self._came: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._is_taken = False

    async def connection(self) -> Connection:
        """The caller's connection, after its hello. To be closed by whoever gets it."""
        connection = await self._came
        self._is_taken = True
        return connection

    def came(self, connection: Connection, *, is_local: bool) -> bool:
        """Whether the connection is the one that is awaited."""
        if self._came.done() or is_local is not self._is_local:
            return False
        self._came.set_result(connection)
        return True

    def forget(self) -> None:
        """Closes what came and was not taken."""
        if not self._came.cancel() and not self._came.cancelled() and not self._is_taken:
            self._came.result().close()


class Listener:
    """A TCP port and, where there are such, a Unix socket without a file (Linux's abstract namespace)."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._expected: dict[int, Expected] = {}  # by call_id
        self._strangers: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []
        self.port = 0
        self.local_name = ""

    def listen(self, bind: str, port: int) -> None:
        """On a TCP port, 0 for any free one. Raises ConfigurationError when it is taken."""
        sock = _tcp(bind, port)
        self.port = sock.getsockname()[1]
        self._listen(sock, is_local=False)

    def listen_locally(self) -> None:
        """On a Unix socket, for processes of this host."""
        self.local_name = f"gemline-kv-{secrets.token_hex(8)}"
        self._listen(_unix(self.local_name), is_local=True)

    @property
    def num_strangers(self) -> int:
        """Connections that have not said who they are."""
        return len(self._strangers)

    @contextmanager
    def expect(self, token: bytes, *, is_local: bool) -> Iterator[Expected]:
        """A call: its caller is let in until the block is left. Whatever has come and was not taken is closed then."""
        expected = Expected(token, is_local=is_local)
        self._expected[expected.call_id] = expected
        try:
            yield expected
        finally:
            del self._expected[expected.call_id]
            expected.forget()

    async def close(self) -> None:
        """Lets nobody in any more. Connections of calls stay."""
        tasks = [*self._accepting, *self._strangers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _listen(self, sock: socket.socket, *, is_local: bool) -> None:
        sock.setblocking(False)
        sock.listen(_MAX_STRANGERS)
        self._sockets.append(sock)
        self._accepting.append(asyncio.create_task(self._accept(sock, is_local=is_local)))

    async def _accept(self, sock: socket.socket, *, is_local: bool) -> None:
        while True:
            try:
                stranger, _ = await asyncio.get_running_loop().sock_accept(sock)
            except OSError as error:  # no file descriptor left, or the caller has gone already
                logger.warning("a data connection was not accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if len(self._strangers) >= _MAX_STRANGERS:
                stranger.close()
                continue
            task = asyncio.create_task(self._greet(Connection(stranger, self._executor), is_local=is_local))
            self._strangers.add(task)
            task.add_done_callback(self._strangers.discard)

    async def _greet(self, connection: Connection, *, is_local: bool) -> None:
        is_known = False
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                hello = await hear_hello(connection)
            expected = self._expected.get(hello.call_id)
            if expected is not None and hello.is_from(expected.token):
                is_known = expected.came(connection, is_local=is_local)
        except (TransferError, TimeoutError):
            pass
        finally:
            if not is_known:
                connection.close()


def _tcp(bind: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((bind, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {bind}:{port} for keys and values: {error.strerror or error}", param="kv_port"
        ) from error


def _unix(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(f"\0{name}")
    return sock
