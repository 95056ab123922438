"""The frames of one call, by whatever transport they come. Knows no engine."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from gemline.internal.v1.prefill_pb2 import KvOpen, PrefillEnd
from gemline.transfer.frames import TransferError, split
from gemline.transfer.handshake import SETUP_TIMEOUT_S
from gemline.transfer.inlet import Incoming, Inlet
from gemline.transfer.offering import Offer
from gemline.transfer.receive import FrameReader
from gemline.transfer.transports import Transport, from_proto

# The call and the data connection are two: when one has said its last word, the other's may still be on its way.
_LATE_FRAME_S = 5.0
_LATE_ERROR_S = 1.0


class Fetch:
    """`call` gives the call's frames and raises what breaks it. Used once, in a `with` that ends what still goes on."""

    def __init__(self, call: AsyncIterator[bytes], offer: Offer, reader: FrameReader) -> None:
        self._call = call
        self._offer = offer
        self._reader = reader
        self._inlet: Inlet | None = None
        self._end: asyncio.Task[PrefillEnd] | None = None
        self.transport = Transport.GRPC
        self.failed: list[Transport] = []  # transports that were opened for us and not to be had
        self.ended_s = 0.0  # when the end frame came, by the monotonic clock

    async def frames(self) -> AsyncGenerator[Incoming]:
        """Every frame, in order and of its right size; then all are there and the reader has its end.

        Raises TransferError, and what the call raises.
        """
        async for data in self._call:
            header, payload = split(data)
            match header.WhichOneof("kind"):
                case "kv":
                    self._reader.accept(header.kv)
                    yield Incoming(header.kv, payload)
                case "open":
                    self._inlet = await self._come(header.open)
                    if self._inlet is not None:
                        async with aclosing(self._from(self._inlet)) as frames:
                            async for frame in frames:
                                yield frame
                        return
                case _:
                    self.ended_s = time.monotonic()
                    self._reader.finish(header.end)
                    return
        raise TransferError("the stream ended before its end frame")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._end is not None and not self._end.cancel() and not self._end.cancelled():
            self._end.exception()  # told already, by whatever ended the frames
        if self._inlet is not None:
            self._inlet.close()

    async def _come(self, where: KvOpen) -> Inlet | None:
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                inlet = await self._offer.come(where)
        except (TransferError, TimeoutError):  # the prefill worker will tell another way
            self.failed += [transport] if (transport := from_proto(where.transport)) is not None else []
            return None
        self.transport = inlet.transport
        return inlet

    async def _from(self, inlet: Inlet) -> AsyncGenerator[Incoming]:
        self._end = asyncio.create_task(self._read_end())
        while not self._reader.is_complete:
            frame = await self._next(inlet, self._end)
            try:
                self._reader.accept(frame.header)
            except TransferError:
                frame.release()
                raise
            yield frame
        self._reader.finish(await self._end)

    async def _next(self, inlet: Inlet, end: "asyncio.Task[PrefillEnd]") -> Incoming:
        frame = asyncio.create_task(inlet.next())
        try:
            await asyncio.wait({frame, end}, return_when=asyncio.FIRST_COMPLETED)
            if not frame.done():
                await self._overtaken(frame, end.result())
            elif isinstance(frame.exception(), TransferError):
                await asyncio.wait({end}, timeout=_LATE_ERROR_S)
                if end.done():
                    end.result()  # raises what ended the call, which is why its frames ended too
            return frame.result()
        finally:
            frame.cancel()

    async def _overtaken(self, frame: "asyncio.Task[Incoming]", end: PrefillEnd) -> None:
        await asyncio.wait({frame}, timeout=_LATE_FRAME_S)
        if not frame.done():
            raise TransferError(
                f"{self._reader.num_frames} frames came and no more for {_LATE_FRAME_S} s; {end.num_frames} were sent"
            )

    async def _read_end(self) -> PrefillEnd:
        async for data in self._call:
            header, _ = split(data)
            self.ended_s = time.monotonic()
            if header.WhichOneof("kind") != "end":
                raise TransferError(f"the call brought {header.WhichOneof('kind')}, its frames come by another way")
            return header.end
        raise TransferError("the stream ended before its end frame")
