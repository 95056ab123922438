"""The Decode service: one Attach stream per gateway, requests in, steps out. Decides nothing; knows no engine."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc.aio

from gemline.decode.requests import RequestTable
from gemline.decode.streams import GatewayStream
from gemline.engine.options import EngineOptions
from gemline.errors import InvalidRequest, StaleEpoch
from gemline.internal.v1.decode_pb2 import AttachRequest, AttachResponse, Ready
from gemline.internal.v1.decode_pb2_grpc import DecodeServicer

AttachContext = grpc.aio.ServicerContext[AttachRequest, AttachResponse]


class Servicer(DecodeServicer):
    """`epoch` gives the worker's present life; a gateway that means another one is refused."""

    def __init__(self, table: RequestTable, epoch: Callable[[], int], options: EngineOptions) -> None:
        """`options` are of the engine, as it took them."""
        self._table = table
        self._epoch = epoch
        self._options = options

    async def Attach(  # type: ignore[override] # the stub cannot say that the context is grpc.aio's
        self, request_iterator: AsyncIterator[AttachRequest], context: AttachContext
    ) -> None:
        """Runs until either side ends it; the gateway's requests end with it."""
        stream = await self._greet(request_iterator)
        self._table.attach(stream)
        tasks = [
            asyncio.create_task(self._read(stream, request_iterator)),
            asyncio.create_task(self._write(stream, context)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._table.detach(stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _greet(self, requests: AsyncIterator[AttachRequest]) -> GatewayStream:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("kind") != "hello":
            raise InvalidRequest("the first message of Attach must be hello")
        if first.hello.epoch != self._epoch():
            raise StaleEpoch(f"epoch {first.hello.epoch} was meant, this worker has epoch {self._epoch()}")
        return GatewayStream(first.hello.gateway_id)

    async def _read(self, stream: GatewayStream, requests: AsyncIterator[AttachRequest]) -> None:
        async for message in requests:
            match message.WhichOneof("kind"):
                case "submit":
                    self._table.submit(stream, message.submit)
                case "cancel":
                    self._table.cancel(stream, message.cancel.handle)
                case "hello":
                    raise InvalidRequest("hello comes once")
                case _:  # something newer than this worker
                    continue

    async def _write(self, stream: GatewayStream, context: AttachContext) -> None:
        options = self._options
        ready = Ready(
            epoch=self._epoch(),
            block_size=options.block_size,
            max_running=options.max_running,
            max_batch_tokens=options.max_batch_tokens,
        )
        await context.write(AttachResponse(ready=ready))
        while True:
            await context.write(await stream.take())
