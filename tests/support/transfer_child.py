"""One end of a transfer in a process of its own, to be killed: `python -m support.transfer_child send|receive ...`."""

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVar

from support.hand_transfer import CONFIG, Order, calling, serving, two_ends
from support.still_engine import StillEngine

from gemline.decode.kv_import import KvImport
from gemline.engine.handover import Handover
from gemline.transfer.transports import Transport

T = TypeVar("T")

ORDER = Order(chunks=tuple(range(1, 121)))  # of a token each: 240 frames, more than any buffer between holds


class Stuck(StillEngine):
    """Moves some frames and then none."""

    num_left = 3

    async def hand_over(self, num_bytes: int, move: Callable[[Handover], T]) -> T:
        if self.num_left == 0:
            print("stuck", flush=True)
            await asyncio.sleep(3600)
        self.num_left -= 1
        return await super().hand_over(num_bytes, move)


async def send() -> None:
    """Serves one sequence, of which it sends no more than some frames; prints its address."""
    async with two_ends(prefill=Stuck(CONFIG, 60)) as ends:
        there = ends.prefill.prefilled(ORDER.num_tokens)
        async with serving(ends, there, ORDER) as address:
            print(address, flush=True)
            await asyncio.sleep(3600)


async def receive(address: str, transport: str) -> None:
    """Fetches from there and gets stuck."""
    async with two_ends(decode=Stuck(CONFIG, 60)) as ends:
        here = ends.decode.reserved(ORDER.num_tokens)
        offer = ends.offer(Transport(transport))
        async with calling(address, offer) as call:
            with ends.fetch(call, offer, ORDER) as fetch:
                await KvImport(ends.decode, here, ends.decode.form()).run(fetch)


if __name__ == "__main__":
    asyncio.run(send() if sys.argv[1] == "send" else receive(*sys.argv[2:]))
