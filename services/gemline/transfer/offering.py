"""How a decode worker gets to the keys and values of its call: what it offers, and how it comes where it is told to."""

import os
import secrets
from concurrent.futures import Executor
from dataclasses import dataclass, field

from gemline.internal.v1.prefill_pb2 import KvOffer, KvOpen
from gemline.transfer import shared_memory
from gemline.transfer.connection import Connection, connect_local, connect_tcp
from gemline.transfer.frames import TransferError
from gemline.transfer.handshake import TOKEN_BYTES, hear_welcome, hear_welcome_with_memory, say_hello, say_ready
from gemline.transfer.inlet import Inlet
from gemline.transfer.nixl import NixlAgent
from gemline.transfer.ring import RingInlet
from gemline.transfer.slots import Slots
from gemline.transfer.stream import StreamInlet
from gemline.transfer.transports import Transport, from_proto, host_id, to_proto

# What a prefill worker may make us map or register for one call.
_MAX_RING_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Offer:
    """Of one call, with a token that only its prefill worker learns. `host` is where that worker is."""

    transports: frozenset[Transport]
    host: str
    executor: Executor
    agent: NixlAgent | None = None
    token: bytes = field(default_factory=lambda: secrets.token_bytes(TOKEN_BYTES))

    @property
    def message(self) -> KvOffer | None:
        """As it travels; None where nothing is offered."""
        if not self.transports:
            return None
        numbers = sorted(map(to_proto, self.transports))
        return KvOffer(transports=numbers, host_id=host_id(), token=self.token)

    async def come(self, where: KvOpen) -> Inlet:
        """The inlet that was opened there. Raises TransferError when that is not to be had, or was not offered."""
        transport = from_proto(where.transport)
        if transport not in self.transports:
            raise TransferError(f"transport {where.transport} was opened, which was not offered")
        if (num_bytes := where.num_slots * where.slot_bytes) > _MAX_RING_BYTES:
            raise TransferError(f"{num_bytes} bytes of memory were asked for, at most {_MAX_RING_BYTES} are given")
        if transport is Transport.SHM:
            connection = await connect_local(where.local_name, self.executor)
        else:
            connection = await connect_tcp(self.host, where.port, self.executor)
        try:
            await say_hello(connection, where.call_id, self.token)
            if transport is Transport.SHM:
                return await _map_memory(where, connection)
            if transport is Transport.NIXL and self.agent is not None:
                return await _lend_memory(where, connection, self.agent)
            return await _take_frames(connection)
        except BaseException:
            connection.close()
            raise


async def _take_frames(connection: Connection) -> Inlet:
    await hear_welcome(connection)
    await say_ready(connection)
    return StreamInlet(connection)


async def _map_memory(where: KvOpen, connection: Connection) -> Inlet:
    fd = await hear_welcome_with_memory(connection)
    try:
        memory = shared_memory.attach(fd, where.num_slots * where.slot_bytes)
    finally:
        os.close(fd)
    await say_ready(connection)
    slots = Slots(memory, where.num_slots, where.slot_bytes)
    return RingInlet(Transport.SHM, connection, slots, where.slot_bytes)


async def _lend_memory(where: KvOpen, connection: Connection, agent: NixlAgent) -> Inlet:
    await hear_welcome(connection)
    slots = Slots.private(where.num_slots, where.slot_bytes)
    try:
        await say_ready(connection, agent.describe(slots))
    except BaseException:
        slots.close()
        raise
    return RingInlet(Transport.NIXL, connection, slots, where.slot_bytes)
