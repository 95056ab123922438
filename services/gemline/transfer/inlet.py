"""Where a decode worker's keys and values come in: the seam between the receiver and the transports."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gemline.internal.v1.prefill_pb2 import FrameHeader
from gemline.transfer.connection import Connection
from gemline.transfer.frames import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    KvHeader,
    TransferError,
    encode_header,
    header_size,
    parse,
)
from gemline.transfer.transports import Transport


@dataclass(frozen=True, slots=True)
class Incoming:
    """A frame, not checked yet. `give_back` is called when nobody needs the payload any more."""

    header: KvHeader
    payload: memoryview
    give_back: Callable[[], None] | None = None

    def release(self) -> None:
        """The payload is gone; to be called once. Where a copy of it still goes on in a thread, its memory stays."""
        with suppress(BufferError):
            self.payload.release()
        if self.give_back is not None:
            self.give_back()


class Inlet(Protocol):
    """Frames of one prefill, beside its call. While too many are not released, nothing more is read."""

    @property
    def transport(self) -> Transport:
        """What it is."""

    async def next(self) -> Incoming:
        """The next frame. Raises TransferError when it cannot be had; to be cancelled before `close`."""

    def close(self) -> None:
        """Lets go of everything; what was not released yet goes with its last user."""


async def send_header(connection: Connection, header: KvHeader, *payload: memoryview) -> None:
    """A frame, or one whose payload goes another way."""
    await connection.send(encode_header(FrameHeader(kv=header)), *payload)


async def receive_header(connection: Connection, max_payload_bytes: int) -> KvHeader:
    """The header of the next frame. Raises TransferError when it or what it announces is too large, or of no range."""
    prefix = await connection.receive(PREFIX_BYTES)
    if (size := header_size(prefix)) > MAX_HEADER_BYTES:
        raise TransferError(f"a header of {size} bytes was announced, at most {MAX_HEADER_BYTES} are taken")
    header = parse(prefix, await connection.receive(size))
    if header.WhichOneof("kind") != "kv":
        raise TransferError(f"a data connection brought {header.WhichOneof('kind')}, expected kv")
    if header.kv.num_bytes > max_payload_bytes:
        raise TransferError(f"a payload of {header.kv.num_bytes} bytes was announced, at most {max_payload_bytes} fit")
    return header.kv
