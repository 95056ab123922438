"""What is said on a data connection before the first frame.

    caller -> prefill worker   hello     which call, and the token that the caller gave with it
    prefill worker -> caller   welcome   with the shared memory's file descriptor, where there is one
    caller -> prefill worker   ready     with what the transport needs of the caller

A connection without the right hello is closed and has cost 44 bytes. Whatever else goes wrong here, the prefill worker
tries the next transport.
"""

import hmac
import os
import struct
from typing import NamedTuple

from gemline.transfer.connection import Connection
from gemline.transfer.frames import TransferError

TOKEN_BYTES = 32
SETUP_TIMEOUT_S = 1.0  # for all of it; the prompt is being computed meanwhile

_HELLO = struct.Struct(f"<4sQ{TOKEN_BYTES}s")
_READY = struct.Struct("<4sI")
_HELLO_MAGIC, WELCOME, _READY_MAGIC = b"GKV1", b"GKVW", b"GKVR"
_MAX_DETAILS_BYTES = 64 * 1024


class Hello(NamedTuple):
    """Who has connected."""

    call_id: int
    token: bytes

    def is_from(self, token: bytes) -> bool:
        """Whether the token is that of the call; takes as long whatever is wrong with it."""
        return hmac.compare_digest(self.token, token)


async def say_hello(connection: Connection, call_id: int, token: bytes) -> None:
    """The caller's first words."""
    await connection.send(_HELLO.pack(_HELLO_MAGIC, call_id, token))


async def hear_hello(connection: Connection) -> Hello:
    """Raises TransferError when it is none."""
    magic, call_id, token = _HELLO.unpack(await connection.receive(_HELLO.size))
    if magic != _HELLO_MAGIC:
        raise TransferError("a data connection began with something else than hello")
    return Hello(call_id, token)


async def hear_welcome(connection: Connection) -> None:
    """Raises TransferError when the prefill worker does not know the call, or has given it up."""
    if await connection.receive(len(WELCOME)) != WELCOME:
        raise TransferError("a data connection's hello was answered by something else than welcome")


async def hear_welcome_with_memory(connection: Connection) -> int:
    """The same, and the file descriptor of the memory: the caller's to close."""
    welcome, fd = await connection.receive_with_fd(len(WELCOME))
    if welcome != WELCOME:
        os.close(fd)
        raise TransferError("a data connection's hello was answered by something else than welcome")
    return fd


async def say_ready(connection: Connection, details: bytes = b"") -> None:
    """The caller can take frames from now on."""
    await connection.send(_READY.pack(_READY_MAGIC, len(details)), details)


async def hear_ready(connection: Connection) -> bytes:
    """The details. Raises TransferError."""
    magic, size = _READY.unpack(await connection.receive(_READY.size))
    if magic != _READY_MAGIC or size > _MAX_DETAILS_BYTES:
        raise TransferError(f"a data connection is not ready: {size} bytes of details, at most {_MAX_DETAILS_BYTES}")
    return await connection.receive(size)
