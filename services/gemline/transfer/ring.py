"""Keys and values through slots that the caller can read: shared memory, or memory that is written over the network.

Headers go over a connection, each with the number of the slot that holds its payload; the number comes back when the
receiver is done with it. In shared memory every byte is copied twice in all: out of one cache, into the other.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gemline.transfer.connection import Connection
from gemline.transfer.frames import KvHeader, TransferError
from gemline.transfer.inlet import Incoming, receive_header, send_header
from gemline.transfer.slots import Slots
from gemline.transfer.transports import Transport

NUM_RING_SLOTS = 8

_SLOT = struct.Struct("<I")


class RingOutlet:
    """The prefill worker's end. `publish` puts a slot's first bytes where the receiver reads them."""

    def __init__(
        self,
        transport: Transport,
        connection: Connection,
        slots: Slots,
        publish: Callable[[int, int], Awaitable[None]] | None = None,
    ) -> None:
        self.transport = transport
        self.slots = slots
        self._connection = connection
        self._publish = publish
        self._sent: set[int] = set()
        self._returns = asyncio.create_task(self._take_back())

    async def send(self, slot: int, header: KvHeader) -> None:
        """The header; the slot comes back when the receiver has read it."""
        if self._publish is not None:
            await self._publish(slot, header.num_bytes)
        header.slot = slot
        self._sent.add(slot)
        await send_header(self._connection, header)

    def close(self) -> None:
        """The receiver keeps the memory as long as it reads in it."""
        self._returns.cancel()
        self._connection.close()
        self.slots.close()

    async def _take_back(self) -> None:
        try:
            while True:
                (slot,) = _SLOT.unpack(await self._connection.receive(_SLOT.size))
                if slot not in self._sent:
                    raise TransferError(f"slot {slot} came back, which was not sent")
                self._sent.remove(slot)
                self.slots.give(slot)
        except TransferError as error:
            self.slots.fail(error)


class RingInlet:
    """The decode worker's end, over slots of which it only reads those whose headers came."""

    def __init__(self, transport: Transport, connection: Connection, slots: Slots, slot_bytes: int) -> None:
        self.transport = transport
        self._connection = connection
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._is_closed = False

    async def next(self) -> Incoming:
        """A frame whose payload lies in the memory."""
        header = await receive_header(self._connection, self._slot_bytes)
        self._slots.claim(header.slot)
        return Incoming(header, self._slots[header.slot][: header.num_bytes], lambda: self._release(header.slot))

    def close(self) -> None:
        """The sender's next frame fails."""
        self._is_closed = True
        self._connection.close()
        self._slots.close()

    def _release(self, slot: int) -> None:
        self._slots.give(slot)
        if not self._is_closed:
            with suppress(TransferError):  # the sender has gone: if too early, its call tells
                self._connection.send_now(_SLOT.pack(slot))
