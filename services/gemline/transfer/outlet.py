"""Where one prefill's keys and values leave: the seam between a sender and the transports. And the plainest of them."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

from gemline.internal.v1.prefill_pb2 import FrameHeader
from gemline.transfer.connection import run_long
from gemline.transfer.frames import MAX_PAYLOAD_BYTES, KvHeader, encode
from gemline.transfer.slots import Slots
from gemline.transfer.transports import Transport

# Being filled, or on their way: so much memory a call takes at most.
NUM_SLOTS = 4

Write = Callable[[bytes], Awaitable[None]]


class Outlet(Protocol):
    """Frames go through slots: the sender takes one, fills it, and sends it, in the order of their headers.

    A slot that was sent comes back by itself, when its bytes have gone or the caller is done with them; while none is
    free the caller is slower than we are. Every fault is a TransferError. Event loop only.
    """

    @property
    def transport(self) -> Transport:
        """What it is."""

    @property
    def slots(self) -> Slots:
        """The memory."""

    async def send(self, slot: int, header: KvHeader) -> None:
        """The first `header.num_bytes` of a slot."""

    def close(self) -> None:
        """Lets go of everything; what was sent still arrives."""


class GrpcOutlet:
    """Frames of the call itself. Each byte is copied once more than gRPC does: into the message."""

    transport = Transport.GRPC

    def __init__(self, write: Write, executor: Executor) -> None:
        self._write = write
        self._executor = executor
        self.slots = Slots.private(NUM_SLOTS, MAX_PAYLOAD_BYTES)

    async def send(self, slot: int, header: KvHeader) -> None:
        """As one message."""
        payload = self.slots[slot][: header.num_bytes]
        frame = await run_long(header.num_bytes, partial(encode, FrameHeader(kv=header), payload), self._executor)
        self.slots.give(slot)
        await self._write(frame)

    def close(self) -> None:
        """Frees the memory."""
        self.slots.close()
