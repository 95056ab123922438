"""Brings the keys and values of one prefill into a reserved sequence, as they come. Knows no gRPC and no socket."""

import asyncio
from collections import deque
from contextlib import aclosing
from functools import partial

from gemline.engine.handover import Handover, Positions
from gemline.engine.kv_form import KvForm
from gemline.engine_host import KvMover
from gemline.transfer.connection import run_long
from gemline.transfer.fetch import Fetch
from gemline.transfer.frames import verify
from gemline.transfer.inlet import Incoming
from gemline_kernels.scales import Scales

# Frames on their way into the engine, of up to 4 MiB each; nothing more is read while there are so many.
_MAX_IMPORTS = 8


class KvImport:
    """Into sequence `seq_id`. Frames are checked and copied beside the engine's steps where that may be."""

    def __init__(self, host: KvMover, seq_id: int, form: KvForm) -> None:
        self._host = host
        self._seq_id = seq_id
        self._form = form
        self._landing: deque[asyncio.Task[None]] = deque()

    async def run(self, fetch: Fetch) -> None:
        """Returns when everything is there. Raises what is wrong with a frame or the sequence, and as `fetch` does."""
        try:
            async with aclosing(fetch.frames()) as frames:
                async for frame in frames:
                    self._landing.append(self._begin(frame))
                    await self._make_room()
                await asyncio.gather(*self._landing)
        finally:
            for task in self._landing:
                task.cancel()
            await asyncio.gather(*self._landing, return_exceptions=True)

    async def _make_room(self) -> None:
        while self._landing and (self._landing[0].done() or len(self._landing) >= _MAX_IMPORTS):
            await self._landing.popleft()

    def _begin(self, frame: Incoming) -> asyncio.Task[None]:
        task = asyncio.create_task(self._land(frame))
        task.add_done_callback(lambda _: frame.release())  # one that is cancelled before it begins has no `finally`
        return task

    async def _land(self, frame: Incoming) -> None:
        num_bytes = frame.payload.nbytes
        await run_long(num_bytes, partial(verify, frame.header, frame.payload), self._host.movers)
        await self._host.hand_over(num_bytes, partial(self._copy, frame))

    def _copy(self, frame: Incoming, handover: Handover) -> None:
        header = frame.header
        at, scales = Positions(header.start, header.stop), Scales(header.key_scale, header.value_scale)
        handover.import_kv(self._seq_id, header.layer, at, self._form, scales, frame.payload)
