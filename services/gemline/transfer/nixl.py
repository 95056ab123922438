"""Keys and values written into the caller's memory by NIXL: RDMA where there is any. NOT YET RUN: no RDMA was there.

Written to the Python API of https://github.com/ai-dynamo/nixl (`nixl._api`). Its own way to pass descriptors on is not
used, for it unpickles: 16 bytes of ours and the agent's metadata travel in the handshake instead. Chosen only where an
operator asks for it by name and the package is installed.
"""

import asyncio
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from gemline.errors import ConfigurationError
from gemline.transfer.frames import TransferError
from gemline.transfer.slots import Slots

_REGION = struct.Struct("<QQ")  # address of the first slot, bytes from one to the next
_POLL_S = 0.0001


class NixlAgent:
    """This process among the others. One is enough for all transfers."""

    def __init__(self) -> None:
        """Raises ConfigurationError when NIXL cannot be started."""
        try:
            from nixl._api import nixl_agent, nixl_agent_config

            config = nixl_agent_config(backends=["UCX"])
            self._agent: Any = nixl_agent(f"gemline-{secrets.token_hex(8)}", config)
        except Exception as error:
            raise ConfigurationError(f"NIXL cannot be started: {error}", param="kv_transport") from error

    def describe(self, slots: Slots) -> bytes:
        """Registers the slots to be written by others; says where they are."""
        address = self._register(slots)
        metadata: bytes = self._agent.get_agent_metadata()
        return _REGION.pack(address, slots[0].nbytes) + metadata

    def writer(self, slots: Slots, details: bytes) -> Callable[[int, int], Awaitable[None]]:
        """Writes a slot's first bytes into the same slot of who described its own."""
        if len(details) <= _REGION.size:
            raise TransferError(f"the caller's memory is described in {len(details)} bytes, expected more")
        address, slot_bytes = _REGION.unpack_from(details)
        own_address, own_slot_bytes = self._register(slots), slots[0].nbytes
        if slot_bytes != own_slot_bytes:
            raise TransferError(f"the caller's slots have {slot_bytes} bytes, ours {own_slot_bytes}")
        peer = self._agent.add_remote_agent(details[_REGION.size :])

        async def write(slot: int, num_bytes: int) -> None:
            offset = slot * slot_bytes
            await self._write(peer, own_address + offset, address + offset, num_bytes)

        return write

    def _register(self, slots: Slots) -> int:
        """Until the slots are closed. Gives the address of the first."""
        address = int(np.frombuffer(slots[0], dtype=np.uint8).ctypes.data)
        region = self._agent.register_memory([(address, len(slots) * slots[0].nbytes, 0, "")], "DRAM")
        slots.before_close = lambda: self._agent.deregister_memory(region)
        return address

    async def _write(self, peer: str, source: int, target: int, num_bytes: int) -> None:
        from_here = self._agent.get_xfer_descs([(source, num_bytes, 0)], "DRAM")
        to_there = self._agent.get_xfer_descs([(target, num_bytes, 0)], "DRAM")
        handle = self._agent.initialize_xfer("WRITE", from_here, to_there, peer)
        try:
            state = self._agent.transfer(handle)
            while state == "PROC":
                await asyncio.sleep(_POLL_S)
                state = self._agent.check_xfer_state(handle)
        finally:
            self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise TransferError(f"NIXL could not write {num_bytes} bytes: {state}")
