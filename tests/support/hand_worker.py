"""A decode worker that speaks the internal protocol by hand, so that a test decides every message."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from gemline.cluster.records import ModelCard, Role, WorkerRecord
from gemline.errors import GemlineError, StaleEpoch
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.internal.v1.decode_pb2_grpc import DecodeServicer, add_DecodeServicer_to_server
from gemline.rpc.options import server_options
from gemline.rpc.status import abort

CARD = ModelCard(
    model_id="tiny",
    revision="0" * 64,
    context_length=256,
    vocab_size=1024,
    stop_token_ids=(1, 107),
    tokenizer_sha256="1" * 64,
)


Outgoing = decode_pb2.AttachResponse | GemlineError | None  # an error or None ends the stream


class HandWorker(DecodeServicer):
    """A decode worker whose tokens are what the test says. Remembers what gateways said."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.address = ""
        self.hellos: list[decode_pb2.Hello] = []
        self.submits: asyncio.Queue[decode_pb2.Submit] = asyncio.Queue()
        self.cancels: asyncio.Queue[int] = asyncio.Queue()
        self._streams: list[asyncio.Queue[Outgoing]] = []
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self._server = grpc.aio.server(options=server_options())
        add_DecodeServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def Attach(
        self, request_iterator: AsyncIterator[decode_pb2.AttachRequest], context: Any
    ) -> AsyncIterator[decode_pb2.AttachResponse]:
        hello = (await anext(aiter(request_iterator))).hello
        if hello.epoch != self.epoch:
            await abort(context, StaleEpoch(f"epoch {hello.epoch} is not {self.epoch}"))
        self.hellos.append(hello)
        outgoing: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._streams.append(outgoing)
        reader = asyncio.create_task(self._read(request_iterator))
        yield decode_pb2.AttachResponse(ready=decode_pb2.Ready(epoch=self.epoch))
        try:
            while isinstance(response := await outgoing.get(), decode_pb2.AttachResponse):
                yield response
            if response is not None:
                await abort(context, response)
        finally:
            self._streams.remove(outgoing)
            reader.cancel()

    async def _read(self, requests: AsyncIterator[decode_pb2.AttachRequest]) -> None:
        async for request in requests:
            if request.HasField("submit"):
                self.submits.put_nowait(request.submit)
            elif request.HasField("cancel"):
                self.cancels.put_nowait(request.cancel.handle)

    def step(self, *events: decode_pb2.Event, num_running: int = 0, num_waiting: int = 0) -> None:
        """Send one Step to every gateway."""
        step = decode_pb2.Step(events=events, num_running=num_running, num_waiting=num_waiting)
        for stream in self._streams:
            stream.put_nowait(decode_pb2.AttachResponse(step=step))

    def close_streams(self, error: GemlineError | None = None) -> None:
        """End every stream: in order, or with an error of the worker's own."""
        for stream in self._streams:
            stream.put_nowait(error)

    def record(self, worker_id: str = "decode-1", **changes: Any) -> WorkerRecord:
        fields: dict[str, Any] = {
            "role": Role.DECODE,
            "address": self.address,
            "model": CARD,
            "epoch": self.epoch,
        } | changes
        return WorkerRecord(worker_id=worker_id, **fields)


def tokens(
    handle: int,
    token_ids: Sequence[int],
    finish: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_UNSPECIFIED,
) -> decode_pb2.Event:
    return decode_pb2.Event(handle=handle, token_ids=token_ids, finish_reason=finish)


MakeWorker = Callable[..., Awaitable[HandWorker]]
