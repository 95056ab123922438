"""How keys and values of one call find their way out of the prefill worker. Knows no engine.

The transports that both sides may use are tried, the best first: the caller is told where it is awaited (KvOpen, on the
call), and has `SETUP_TIMEOUT_S` to come. One that cannot does nothing and is told the next. gRPC comes last: the frames
then follow on the call.
"""

import asyncio
import logging
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from gemline.internal.v1.prefill_pb2 import FrameHeader, KvOffer, KvOpen
from gemline.transfer import shared_memory
from gemline.transfer.connection import Connection
from gemline.transfer.frames import MAX_PAYLOAD_BYTES, TransferError, encode
from gemline.transfer.handshake import SETUP_TIMEOUT_S, TOKEN_BYTES, WELCOME, hear_ready
from gemline.transfer.listener import Listener
from gemline.transfer.nixl import NixlAgent
from gemline.transfer.outlet import GrpcOutlet, Outlet, Write
from gemline.transfer.ring import NUM_RING_SLOTS, RingOutlet
from gemline.transfer.slots import Slots
from gemline.transfer.stream import StreamOutlet
from gemline.transfer.transports import Transport, to_proto

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """What a prefill worker has to let callers in: nothing but gRPC where there is no listener."""

    executor: Executor
    listener: Listener | None = None
    agent: NixlAgent | None = None

    async def open(self, offer: KvOffer, choices: Iterable[Transport], write: Write) -> Outlet:
        """The first of the choices that the caller comes to; gRPC when it comes to none."""
        if self.listener is not None and len(offer.token) == TOKEN_BYTES:
            for transport in choices:
                try:
                    async with asyncio.timeout(SETUP_TIMEOUT_S):
                        return await self._open(transport, _Meeting(self.listener, offer.token, write))
                except (TransferError, TimeoutError, OSError) as error:
                    logger.warning("no keys and values leave by %s: %s", transport.value, str(error) or "nobody came")
        return GrpcOutlet(write, self.executor)

    async def _open(self, transport: Transport, meeting: "_Meeting") -> Outlet:
        if transport is Transport.SHM:
            return await _share_memory(meeting)
        if transport is Transport.NIXL and self.agent is not None:
            return await _write_remotely(meeting, self.agent)
        return StreamOutlet((await meeting.meet(Transport.SOCKET)).connection)


@dataclass(frozen=True, slots=True)
class _Met:
    connection: Connection
    details: bytes  # what the caller said when it was ready


@dataclass(frozen=True, slots=True)
class _Meeting:
    listener: Listener
    token: bytes
    write: Write

    async def meet(self, transport: Transport, fd: int | None = None) -> _Met:
        """Tells the caller where, lets it in, hands it `fd`, and hears that it is ready."""
        where = KvOpen(transport=to_proto(transport), num_slots=NUM_RING_SLOTS, slot_bytes=MAX_PAYLOAD_BYTES)
        if fd is None:
            where.port = self.listener.port
        else:
            where.local_name = self.listener.local_name
        with self.listener.expect(self.token, is_local=fd is not None) as expected:
            where.call_id = expected.call_id
            await self.write(encode(FrameHeader(open=where)))
            connection = await expected.connection()
        try:
            connection.send_now(WELCOME, fd)
            return _Met(connection, await hear_ready(connection))
        except BaseException:
            connection.close()
            raise


async def _share_memory(meeting: _Meeting) -> Outlet:
    memory, fd = shared_memory.create(NUM_RING_SLOTS * MAX_PAYLOAD_BYTES)
    try:
        met = await meeting.meet(Transport.SHM, fd)
    except BaseException:
        memory.close()
        raise
    finally:
        os.close(fd)
    return RingOutlet(Transport.SHM, met.connection, Slots(memory, NUM_RING_SLOTS, MAX_PAYLOAD_BYTES))


async def _write_remotely(meeting: _Meeting, agent: NixlAgent) -> Outlet:
    met = await meeting.meet(Transport.NIXL)
    try:
        slots = Slots.private(NUM_RING_SLOTS, MAX_PAYLOAD_BYTES)
        return RingOutlet(Transport.NIXL, met.connection, slots, agent.writer(slots, met.details))
    except BaseException:
        met.connection.close()
        raise
