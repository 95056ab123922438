"""The client for asyncio programs."""

import asyncio
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from grpc import aio

from gemline.client import requests, responses
from gemline.client.aio_stream import AsyncCall, AsyncStream, is_task_canceled
from gemline.client.options import Keepalive, Tls
from gemline.client.retry import RetryPolicy, Tries
from gemline.client.target import CLOSED, DEFAULT_TIMEOUT_S, Target
from gemline.client.types import Completion, Messages, Model, Sampling
from gemline.errors import Unavailable
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import inference_pb2_grpc as rpc

Named = TypeVar("Named", bound=requests.Named)
Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """Talks to a gateway at `address` (host:port of its gRPC server). Every error it raises is one of gemline.errors.

    A call that names no model gets `model`, else the only one the gateway serves. `timeout_s` is a deadline for a
    request with all its tries, None for none. The channel is plain unless `tls` is given; it opens in the event loop of
    the first call and belongs to it.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
        keepalive: Keepalive | None = None,
    ) -> None:
        self._target = Target.of(address, api_key, model, timeout_s, retry, tls, keepalive)
        self._opened: tuple[aio.Channel, rpc.InferenceAsyncStub] | None = None
        self._closed = False

    async def generate(
        self, prompt: str, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Completion:
        """Continue raw text, Gemma's control tokens recognised."""
        request = requests.generate(pb.GenerateRequest, model or self._target.model, prompt, sampling)
        response = await self._call(self._stub.Generate, request, timeout_s)
        return responses.completion(response)

    def generate_stream(
        self, prompt: str, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncStream:
        """Continue raw text, piece by piece."""
        request = requests.generate(pb.GenerateStreamRequest, model or self._target.model, prompt, sampling)

        async def open_call(tries: Tries) -> AsyncCall:
            named = await self._with_model(request, tries)
            return self._stub.GenerateStream(named, timeout=tries.remaining_s(), metadata=self._target.metadata)

        return AsyncStream(open_call, self._target.tries(timeout_s))

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """The next turn of a conversation."""
        request = requests.chat(pb.ChatRequest, model or self._target.model, messages, sampling)
        response = await self._call(self._stub.Chat, request, timeout_s)
        return responses.completion(response)

    def chat_stream(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **sampling: Unpack[Sampling],
    ) -> AsyncStream:
        """The next turn of a conversation, piece by piece."""
        request = requests.chat(pb.ChatStreamRequest, model or self._target.model, messages, sampling)

        async def open_call(tries: Tries) -> AsyncCall:
            named = await self._with_model(request, tries)
            return self._stub.ChatStream(named, timeout=tries.remaining_s(), metadata=self._target.metadata)

        return AsyncStream(open_call, self._target.tries(timeout_s))

    async def count_tokens(
        self, prompt: str | Messages, *, model: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Tokens of raw text (a str) or of a conversation, <bos> and turn markers included."""
        request = requests.count_tokens(model or self._target.model, prompt)
        return (await self._call(self._stub.CountTokens, request, timeout_s)).num_tokens

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """The models that this key may use."""
        tries = self._target.tries(timeout_s)
        return responses.models(await self._try(self._stub.ListModels, pb.ListModelsRequest(), tries))

    async def close(self) -> None:
        """End every call and the connection. Calls after it raise RuntimeError."""
        self._closed = True
        if self._opened is not None:
            await self._opened[0].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _stub(self) -> "rpc.InferenceAsyncStub":
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._opened is None:
            channel = self._open_channel(self._target)
            self._opened = channel, rpc.InferenceStub(channel)
        return self._opened[1]

    @staticmethod
    def _open_channel(target: Target) -> aio.Channel:
        if target.credentials is None:
            return aio.insecure_channel(target.address, target.options)
        return aio.secure_channel(target.address, target.credentials, target.options)

    async def _call(
        self, method: aio.UnaryUnaryMultiCallable[Named, Response], request: Named, timeout_s: float | None
    ) -> Response:
        tries = self._target.tries(timeout_s)
        return await self._try(method, await self._with_model(request, tries), tries)

    async def _with_model(self, request: Named, tries: Tries) -> Named:
        if not request.model:
            listed = await self._try(self._stub.ListModels, pb.ListModelsRequest(), tries)
            request.model = requests.only_model(listed.models)
        return request

    async def _try(
        self, method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, tries: Tries
    ) -> Response:
        while True:
            try:
                return await method(request, timeout=tries.remaining_s(), metadata=self._target.metadata)
            except grpc.RpcError as failure:
                pause_s = tries.pause_s(failure)
            except asyncio.CancelledError:
                if self._closed and not is_task_canceled():
                    raise Unavailable(f"{CLOSED}: it ended the call") from None
                raise
            await asyncio.sleep(pause_s)
