"""A gateway's end of an Attach stream, by hand: submits token ids, collects tokens, counts messages."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from gemline.engine.params import SamplingParams
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.internal.v1.decode_pb2_grpc import DecodeStub
from gemline.rpc.convert import sampling_to_proto
from gemline.rpc.options import open_channel


@dataclass
class Answer:
    """What came for one request so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)
    finish: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_UNSPECIFIED
    error: str = ""
    num_cached: list[int] = field(default_factory=list)  # of every event
    first: asyncio.Event = field(default_factory=asyncio.Event)  # set with the first token, or the end
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class HandGateway:
    """One stream. `broken` holds what ended it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._turn = asyncio.Lock()  # a call takes one write at a time
        self.steps: list[decode_pb2.Step] = []
        self.answers: dict[int, Answer] = {}
        self.broken: asyncio.Future[grpc.StatusCode] = asyncio.get_running_loop().create_future()

    async def submit(
        self, handle: int, token_ids: Sequence[int], params: SamplingParams, *, traceparent: str = "", salt: bytes = b""
    ) -> Answer:
        answer = self.answers[handle] = Answer()
        submit = decode_pb2.Submit(
            handle=handle,
            request_id=f"req_{handle}",
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            sampling=sampling_to_proto(params),
            trace_context=traceparent,
            cache_salt=salt,
        )
        await self._write(decode_pb2.AttachRequest(submit=submit))
        return answer

    async def generate(
        self, handle: int, token_ids: Sequence[int], params: SamplingParams, *, traceparent: str = "", salt: bytes = b""
    ) -> Answer:
        answer = await self.submit(handle, token_ids, params, traceparent=traceparent, salt=salt)
        await asyncio.wait_for(answer.ended.wait(), 30)
        return answer

    async def cancel(self, handle: int) -> None:
        await self._write(decode_pb2.AttachRequest(cancel=decode_pb2.Cancel(handle=handle)))

    async def _write(self, message: decode_pb2.AttachRequest) -> None:
        async with self._turn:
            await self.call.write(message)

    async def read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self._take(response.step)
        except grpc.aio.AioRpcError as error:
            self.broken.set_result(error.code())
        else:
            self.broken.set_result(await self.call.code())

    def _take(self, step: decode_pb2.Step) -> None:
        self.steps.append(step)
        for event in step.events:
            answer = self.answers[event.handle]
            answer.token_ids += event.token_ids
            answer.num_cached.append(event.num_cached_tokens)
            answer.logprobs += [(tuple(item.token_ids), tuple(item.values)) for item in event.logprobs]
            answer.finish = event.finish_reason
            answer.error = event.error.code
            answer.first.set()
            if event.finish_reason or event.HasField("error"):
                answer.ended.set()


@asynccontextmanager
async def attached(address: str, epoch: int) -> AsyncIterator[HandGateway]:
    """A gateway attached to the worker; leaving breaks the stream."""
    async with open_channel(address) as channel:
        stub: Any = DecodeStub(channel)
        call = stub.Attach()
        await call.write(decode_pb2.AttachRequest(hello=decode_pb2.Hello(gateway_id="by hand", epoch=epoch)))
        ready = await call.read()
        assert ready.ready.epoch == epoch
        gateway = HandGateway(call)
        reader = asyncio.create_task(gateway.read())
        try:
            yield gateway
        finally:
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)
