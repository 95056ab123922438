"""Keys and values over a TCP connection: whole frames, from the sender's slot into the receiver's.

Two copies by the kernel are all that lies between; with those out of one cache and into the other, four a byte.
"""

from gemline.transfer.connection import Connection
from gemline.transfer.frames import MAX_PAYLOAD_BYTES, KvHeader
from gemline.transfer.inlet import Incoming, receive_header, send_header
from gemline.transfer.outlet import NUM_SLOTS
from gemline.transfer.slots import Slots
from gemline.transfer.transports import Transport


class StreamOutlet:
    """The prefill worker's end."""

    transport = Transport.SOCKET

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.slots = Slots.private(NUM_SLOTS, MAX_PAYLOAD_BYTES)

    async def send(self, slot: int, header: KvHeader) -> None:
        """Header and payload, from where they are."""
        await send_header(self._connection, header, self.slots[slot][: header.num_bytes])
        self.slots.give(slot)

    def close(self) -> None:
        """What the kernel has still arrives."""
        self._connection.close()
        self.slots.close()


class StreamInlet:
    """The decode worker's end. While no slot is free nothing is read, and the sender finds its connection full."""

    transport = Transport.SOCKET

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots = Slots.private(NUM_SLOTS, MAX_PAYLOAD_BYTES)

    async def next(self) -> Incoming:
        """A frame whose payload lies in a slot."""
        slot = await self._slots.take()
        header = await receive_header(self._connection, MAX_PAYLOAD_BYTES)
        payload = self._slots[slot][: header.num_bytes]
        await self._connection.receive_into(payload)
        return Incoming(header, payload, lambda: self._slots.give(slot))

    def close(self) -> None:
        """The sender's next frame fails."""
        self._connection.close()
        self._slots.close()
