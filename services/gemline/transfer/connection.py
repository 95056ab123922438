"""A data connection: a non-blocking socket that whole buffers go through. Knows no frame."""

from __future__ import annotations  # a Future's parameter is in the stubs alone

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from gemline.transfer.checksum import Buffer
from gemline.transfer.frames import MAX_PAYLOAD_BYTES, TransferError

T = TypeVar("T")

# What is longer is copied, or read for its checksum, in a thread: 4 MiB would hold up the event loop for milliseconds.
_INLINE_BYTES = 128 * 1024


async def run_long(num_bytes: int, work: Callable[[], T], executor: Executor) -> T:
    """Does what takes as long as so many bytes do: at once, or in a thread when that would hold up the event loop."""
    return work() if num_bytes <= _INLINE_BYTES else await asyncio.wrap_future(executor.submit(work))


class Connection:
    """Used by one reader and one writer at a time. Every fault of the connection is a TransferError.

    Event loop only; `executor` has the threads for long copies to and from the kernel.
    """

    def __init__(self, sock: socket.socket, executor: Executor) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()  # for the socket
        self._num_threads = 0  # that use the socket now
        self._is_closed = False

    async def receive_into(self, view: memoryview) -> None:
        """Fills it. Raises TransferError when the other side closes before."""
        while view.nbytes:
            num_bytes = await self._run(view.nbytes, partial(_receive, self._sock, view))
            view = view[num_bytes:]
            if view.nbytes:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def receive(self, num_bytes: int) -> bytes:
        """So many bytes."""
        data = bytearray(num_bytes)
        await self.receive_into(memoryview(data))
        return bytes(data)

    async def receive_with_fd(self, num_bytes: int) -> tuple[bytes, int]:
        """So few bytes that they come at once, and the file descriptor that comes with them: the caller's to close."""
        await self._ready(self._loop.add_reader, self._loop.remove_reader)
        with _faults_told():
            data, fds, _, _ = socket.recv_fds(self._sock, num_bytes, 1, socket.MSG_CMSG_CLOEXEC)
        if len(data) != num_bytes or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise TransferError(f"{len(data)} bytes and {len(fds)} files came, expected {num_bytes} and 1")
        return data, fds[0]

    async def send(self, *parts: Buffer) -> None:
        """Every byte of every part, in order."""
        left = [memoryview(part).cast("B") for part in parts]
        while True:
            num_bytes = sum(part.nbytes for part in left)
            left = await self._run(num_bytes, partial(_send, self._sock, left))
            if not left:
                return
            await self._ready(self._loop.add_writer, self._loop.remove_writer)

    def send_now(self, data: bytes, fd: int | None = None) -> None:
        """A few bytes, for which there is always room, and a file descriptor with them."""
        with _faults_told():
            sent = self._sock.send(data) if fd is None else socket.send_fds(self._sock, [data], [fd])
        if sent != len(data):
            raise TransferError(f"of {len(data)} bytes {sent} could be sent")

    def close(self) -> None:
        """What was sent still arrives. Whoever reads or writes gets a TransferError; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(TransferError("the data connection was closed here"))
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._close_unused()

    async def _run(self, num_bytes: int, work: Callable[[], T]) -> T:
        if num_bytes <= _INLINE_BYTES:
            return work()
        self._num_threads += 1
        done = self._executor.submit(work)
        done.add_done_callback(lambda _: self._post(self._thread_done))
        return await asyncio.wrap_future(done)

    def _post(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(callback)

    def _thread_done(self) -> None:
        self._num_threads -= 1
        if self._is_closed:
            self._close_unused()

    def _close_unused(self) -> None:
        """Not under a thread that uses it: its number could be another file's by the time it is read from."""
        if not self._num_threads:
            self._sock.close()
        else:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def _ready(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        if self._is_closed:
            raise TransferError("the data connection was closed here")
        ready: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(ready)
        add(self._sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if not self._is_closed:
                remove(self._sock)


@contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransferError(f"the data connection broke: {error.strerror or error}") from error


def _receive(sock: socket.socket, view: memoryview) -> int:
    """As many bytes as are there."""
    done = 0
    with _faults_told():
        while done < view.nbytes:
            try:
                num_bytes = sock.recv_into(view[done:])
            except BlockingIOError:
                break
            if num_bytes == 0:
                raise TransferError("the other side has closed the data connection")
            done += num_bytes
    return done


def _send(sock: socket.socket, parts: list[memoryview]) -> list[memoryview]:
    """As many bytes as there is room for; what is left."""
    parts = [part for part in parts if part.nbytes]
    with _faults_told():
        while parts:
            try:
                num_bytes = sock.sendmsg(parts)
            except BlockingIOError:
                break
            while num_bytes:
                taken = min(num_bytes, parts[0].nbytes)
                parts[0], num_bytes = parts[0][taken:], num_bytes - taken
                if not parts[0].nbytes:
                    parts.pop(0)
    return parts


async def connect_tcp(host: str, port: int, executor: Executor) -> Connection:
    """Raises TransferError when nobody listens there. The caller says how long it may take."""
    with _faults_told():
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_WINDOW_CLAMP"):  # the kernel would take up to 32 MiB for a reader that is slow
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, MAX_PAYLOAD_BYTES)
    return await _connected(sock, address, executor)


async def connect_local(name: str, executor: Executor) -> Connection:
    """To a socket of the abstract namespace. Raises TransferError when nobody listens there."""
    return await _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"\0{name}", executor)


async def _connected(sock: socket.socket, address: Any, executor: Executor) -> Connection:
    sock.setblocking(False)
    try:
        with _faults_told():
            await asyncio.get_running_loop().sock_connect(sock, address)
        return Connection(sock, executor)
    except BaseException:
        sock.close()
        raise
