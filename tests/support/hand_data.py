"""A data connection by hand: stands between the two workers, speaks their words, and spoils one frame."""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from gemline.internal.v1.prefill_pb2 import FrameHeader, KvOpen
from gemline.transfer.transports import Transport, from_proto

HELLO_BYTES, WELCOME_BYTES, READY_BYTES = 44, 4, 8
PREFIX = struct.Struct("<II")  # length and crc32 of the header


@dataclass
class Passing:
    """A frame on its way: as bytes, and its payload where that can be changed."""

    frame: bytearray
    payload: memoryview
    forward: Callable[[bytes], None]


DataAct = Callable[[Passing], None]  # raises ConnectionError to break the connection


def die(passing: Passing) -> None:
    """The worker is gone, and with it the call."""
    raise ConnectionAbortedError


def cut(passing: Passing) -> None:
    """Half a frame, and then nothing more; the call goes on."""
    passing.forward(bytes(passing.frame[: len(passing.frame) // 2]))
    raise ConnectionResetError


def damage(passing: Passing) -> None:
    """One bit of the last byte of the payload is flipped."""
    passing.payload[-1] ^= 1
    passing.forward(bytes(passing.frame))


def drop(passing: Passing) -> None:
    """The frame is lost."""


def repeat(passing: Passing) -> None:
    """The frame comes twice."""
    passing.forward(bytes(passing.frame) * 2)


ACTS = (die, cut, damage, drop, repeat)


@dataclass
class Relay:
    """For one call: `opened` takes the prefill worker's word where it is, and gives the relay's own."""

    at_frame: int
    act: DataAct
    killed: Callable[[], None]
    _near: socket.socket = field(init=False)
    _where: KvOpen = field(init=False)
    _open: ExitStack = field(default_factory=ExitStack)

    def opened(self, where: KvOpen) -> KvOpen:
        self._where = KvOpen.FromString(where.SerializeToString())
        told = KvOpen.FromString(where.SerializeToString())
        if self._is_local:
            told.local_name = f"relay-{secrets.token_hex(8)}"
            self._near = socket.socket(socket.AF_UNIX)
            self._near.bind(f"\0{told.local_name}")
            self._near.listen()
        else:
            self._near = socket.create_server(("127.0.0.1", 0))
            told.port = self._near.getsockname()[1]
        self._open.callback(self._near.close)
        self._near.settimeout(5)
        threading.Thread(target=self._run, daemon=True).start()
        return told

    @property
    def _is_local(self) -> bool:
        return from_proto(self._where.transport) is Transport.SHM

    def _run(self) -> None:
        with self._open, suppress(ConnectionError):
            try:
                self._relay()
            except ConnectionAbortedError:
                self.killed()
                raise

    def _relay(self) -> None:
        caller, _ = self._near.accept()
        worker = socket.socket(socket.AF_UNIX if self._is_local else socket.AF_INET)
        for sock in (caller, worker):
            self._open.callback(sock.close)
            self._open.callback(_shut, sock)
        worker.connect(f"\0{self._where.local_name}" if self._is_local else ("127.0.0.1", self._where.port))
        worker.sendall(_read(caller, HELLO_BYTES))
        memory = self._pass_welcome(worker, caller)
        worker.sendall(_read(caller, READY_BYTES))
        threading.Thread(target=_pump, args=(caller, worker), daemon=True).start()
        self._pass_frames(worker, caller, memory)

    def _pass_welcome(self, worker: socket.socket, caller: socket.socket) -> memoryview | None:
        if not self._is_local:
            caller.sendall(_read(worker, WELCOME_BYTES))
            return None
        welcome, fds, _, _ = socket.recv_fds(worker, WELCOME_BYTES, 1)
        if not fds:
            raise ConnectionError
        socket.send_fds(caller, [welcome], fds)
        memory = mmap.mmap(fds[0], self._where.num_slots * self._where.slot_bytes)
        os.close(fds[0])
        return memoryview(memory)

    def _pass_frames(self, worker: socket.socket, caller: socket.socket, memory: memoryview | None) -> None:
        number = 0
        while True:
            passing = self._next(worker, caller, memory)
            if number == self.at_frame:
                self.act(passing)
            else:
                passing.forward(bytes(passing.frame))
            number += 1

    def _next(self, worker: socket.socket, caller: socket.socket, memory: memoryview | None) -> Passing:
        frame = bytearray(_read(worker, PREFIX.size))
        frame += _read(worker, PREFIX.unpack(frame)[0])
        header = FrameHeader.FromString(bytes(frame[PREFIX.size :])).kv
        if memory is not None:
            start = header.slot * self._where.slot_bytes
            return Passing(frame, memory[start : start + header.num_bytes], caller.sendall)
        head = len(frame)
        frame += _read(worker, header.num_bytes)
        return Passing(frame, memoryview(frame)[head:], caller.sendall)


def _read(sock: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        piece = sock.recv(num_bytes - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(4096):
            target.sendall(data)
    _shut(target)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
