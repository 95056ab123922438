"""A TCP link with faults: forwards, delays, swallows or cuts what passes between two processes. Has its own thread."""

import asyncio
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CHUNK_BYTES = 16 * 1024
_MAX_CHUNKS = 64  # on their way; whoever sends more has to wait, as on a real link
_RESET = struct.pack("ii", 1, 0)  # closing tells the other side so, at once


class Link:
    """`address` leads to host:port `to`. Whatever is set holds for connections that stand, and for new ones.

    To lead to a process that says its address itself, listen at its own port number on another loopback address.
    """

    def __init__(self, to: str, listen: str = "127.0.0.1:0") -> None:
        self._to = _split(to)
        self._delay_s = 0.0
        self._num_left, self._act = -1, _nothing
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._passes = asyncio.Event()
        self._passes.set()
        self._server = self._do(asyncio.start_server(self._connected, *_split(listen)))
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def forward(self) -> None:
        """All is well again; what was held back arrives, and nothing is to be done `after` anything any more."""
        self._num_left = -1
        self._do(self._set(is_cut=False, passes=True))

    def blackhole(self) -> None:
        """From now on nothing passes, either way, and nobody is told."""
        self._do(self._set(is_cut=False, passes=False))

    def cut(self) -> None:
        """Every connection is reset, new ones too."""
        self._do(self._set(is_cut=True, passes=True))

    def delay(self, delay_s: float) -> None:
        """What comes back takes that much longer; 0 is no longer than it takes."""
        self._delay_s = delay_s

    def after(self, num_bytes: int, act: Callable[[], None]) -> None:
        """Does that once, in the link's thread, before anything passes beyond so many bytes more that come back."""
        self._num_left, self._act = num_bytes, act

    @property
    def has_acted(self) -> bool:
        """Whether what `after` was told has been done, or nothing was."""
        return self._num_left < 0

    def close(self) -> None:
        """Ends every connection, and the thread."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:  # called from an act: a coroutine here that waits for nothing
            try:
                work.send(None)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            raise AssertionError("this would wait for its own thread")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _set(self, *, is_cut: bool, passes: bool) -> None:
        self._is_cut = is_cut
        if passes:
            self._passes.set()
        else:
            self._passes.clear()
        for writer in self._writers if is_cut else ():
            _reset(writer)

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            _reset(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            return _reset(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            return _reset(writer)
        self._writers |= {writer, far_writer}
        self._start(self._pass(reader, far_writer, is_back=False))
        self._start(self._pass(far_reader, writer, is_back=True))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_back: bool) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS)
        self._start(self._deliver(chunks, writer))
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            if is_back and not self.has_acted:
                self._num_left -= len(data)
                if self.has_acted:
                    self._act()
            await chunks.put((self._loop.time() + self._delay_s * is_back, data))

    async def _deliver(self, chunks: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        data = b"-"
        while data:
            due_s, data = await chunks.get()
            await asyncio.sleep(due_s - self._loop.time())
            await self._passes.wait()
            if not writer.is_closing():  # else nobody is there any more: what comes is read and forgotten
                with suppress(OSError):
                    writer.write(data)
                    await writer.drain()
        self._writers.discard(writer)
        writer.close()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    writer.transport.abort()


def _nothing() -> None:
    pass
