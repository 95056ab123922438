"""Prefill by hand: a caller that reads the frames of a real worker, and a worker in between that spoils them."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import redis.asyncio
from support.hand_data import DataAct, Passing, Relay

from gemline.cluster.records import WorkerRecord
from gemline.cluster.workers import WorkerLease
from gemline.internal.v1.prefill_pb2 import FrameHeader, PrefillRequest
from gemline.rpc.options import open_channel, server_options
from gemline.transfer.frames import encode, split

METHOD = "/gemline.internal.v1.Prefill/Prefill"

Write = Callable[[bytes], Awaitable[None]]


def call_prefill(channel: grpc.aio.Channel, request: PrefillRequest) -> Any:
    """The call, an async iterator of frames."""
    method: Any = channel.unary_stream(METHOD, PrefillRequest.SerializeToString, None)
    return method(request)


@dataclass
class Spoiler:
    """Stands between a decode worker and the prefill worker `behind`, and does `act` at frame `at_frame`.

    With `data_act` it stands between their data connections too, and does that at their frame `at_frame`.
    """

    behind: WorkerRecord
    at_frame: int = 1_000_000
    act: Callable[[bytes, Write, Any], Awaitable[None]] | None = None
    data_act: DataAct | None = None
    num_calls: int = 0
    num_frames: int = 0  # seen in all calls, but not on data connections
    acted: bool = False

    async def prefill(self, request: PrefillRequest, context: Any) -> None:
        self.num_calls += 1
        request.epoch = self.behind.epoch
        async with open_channel(self.behind.address) as channel:
            number = 0
            async for frame in call_prefill(channel, request):
                self.num_frames += 1
                if number == self.at_frame and self.act is not None:
                    self.acted = True
                    await self.act(frame, context.write, context)
                else:
                    await context.write(self._relayed(frame, asyncio.current_task()))
                number += 1

    def _relayed(self, frame: bytes, call: asyncio.Task[None] | None) -> bytes:
        header, _ = split(frame)
        if self.data_act is None or not header.HasField("open"):
            return frame
        loop, act = asyncio.get_running_loop(), self.data_act

        def seen(passing: Passing) -> None:
            self.acted = True
            act(passing)

        def killed() -> None:
            if call is not None:
                loop.call_soon_threadsafe(call.cancel)

        relay = Relay(self.at_frame, seen, killed)
        return encode(FrameHeader(open=relay.opened(header.open)))


async def die(frame: bytes, write: Write, context: Any) -> None:
    """The worker is gone."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")


async def stop_early(frame: bytes, write: Write, context: Any) -> None:
    """The stream ends as if all were well."""
    raise EOFError


async def damage(frame: bytes, write: Write, context: Any) -> None:
    """One bit of the last byte is flipped."""
    await write(frame[:-1] + bytes([frame[-1] ^ 1]))


async def drop(frame: bytes, write: Write, context: Any) -> None:
    """The frame is lost."""


async def repeat(frame: bytes, write: Write, context: Any) -> None:
    """The frame comes twice."""
    await write(frame)
    await write(frame)


async def hang(frame: bytes, write: Write, context: Any) -> None:
    """Nothing comes any more."""
    await asyncio.sleep(3600)


@asynccontextmanager
async def registered(spoiler: Spoiler, redis_url: str) -> AsyncIterator[WorkerRecord]:
    """The spoiler serving, and in Redis under a name that comes before the real worker's."""
    async with served(spoiler) as address, leased(address, spoiler.behind, redis_url) as record:
        yield record


@asynccontextmanager
async def served(spoiler: Spoiler) -> AsyncIterator[str]:
    """The spoiler's address."""

    async def prefill(request: PrefillRequest, context: Any) -> None:
        try:
            await spoiler.prefill(request, context)
        except EOFError:
            return

    server = grpc.aio.server(options=server_options())
    handler: grpc.RpcMethodHandler[PrefillRequest, bytes] = grpc.unary_stream_rpc_method_handler(
        prefill, PrefillRequest.FromString, None
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("gemline.internal.v1.Prefill", {"Prefill": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def leased(address: str, behind: WorkerRecord, redis_url: str) -> AsyncIterator[WorkerRecord]:
    """A record like that of `behind`, with another address and a name that comes before it."""
    client = redis.asyncio.Redis.from_url(redis_url)
    lease = WorkerLease(client, replace(behind, worker_id="a-spoiler", address=address, epoch=0))
    await lease.register()
    await asyncio.sleep(0.1)  # until everybody has heard of it
    try:
        yield lease.record
    finally:
        await lease.withdraw()
        await client.aclose()


@asynccontextmanager
async def frozen_after(behind: WorkerRecord, num_bytes: int) -> AsyncIterator[str]:
    """An address that leads to the worker; once it has sent that many bytes nothing passes any more, either way."""
    frozen = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: float) -> None:
        while data := await reader.read(1024):
            limit -= len(data)
            if limit < 0:
                frozen.set()
            if frozen.is_set():
                await asyncio.sleep(3600)
            writer.write(data)
            await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = behind.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, far_writer))
        pumps = (pump(reader, far_writer, float("inf")), pump(far_reader, writer, num_bytes))
        tasks.extend(asyncio.create_task(each) for each in pumps)

    tasks: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
