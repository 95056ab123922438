"""The client for asyncio programs."""

from types import TracebackType
from typing import Self, TypeVar, Unpack

from grpc import aio

from gemline.client import requests, responses
from gemline.client.aio_caller import AsyncCaller
from gemline.client.aio_sessions import AsyncSessions
from gemline.client.aio_stream import AsyncCall, AsyncStream
from gemline.client.options import Keepalive, Tls
from gemline.client.retry import RetryPolicy, Tries
from gemline.client.target import DEFAULT_TIMEOUT_S, Target
from gemline.client.types import Completion, Messages, Model, Sampling
from gemline.v1 import inference_pb2 as pb

Named = TypeVar("Named", bound=requests.Named)
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
        self._caller = AsyncCaller(self._target)
        self._sessions = AsyncSessions(self._caller)

    @property
    def sessions(self) -> AsyncSessions:
        """Conversations that the gateway keeps."""
        return self._sessions

    async def generate(
        self, prompt: str, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Completion:
        """Continue raw text, Gemma's control tokens recognised."""
        request = requests.generate(pb.GenerateRequest, model or self._target.model, prompt, sampling)
        response = await self._call(self._caller.inference.Generate, request, timeout_s)
        return responses.completion(response)

    def generate_stream(
        self, prompt: str, *, model: str | None = None, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncStream:
        """Continue raw text, piece by piece."""
        request = requests.generate(pb.GenerateStreamRequest, model or self._target.model, prompt, sampling)

        async def open_call(tries: Tries) -> AsyncCall:
            named = await self._with_model(request, tries)
            return self._caller.inference.GenerateStream(
                named, timeout=tries.remaining_s(), metadata=self._target.metadata
            )

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
        response = await self._call(self._caller.inference.Chat, request, timeout_s)
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
            return self._caller.inference.ChatStream(named, timeout=tries.remaining_s(), metadata=self._target.metadata)

        return AsyncStream(open_call, self._target.tries(timeout_s))

    async def count_tokens(
        self, prompt: str | Messages, *, model: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Tokens of raw text (a str) or of a conversation, <bos> and turn markers included."""
        request = requests.count_tokens(model or self._target.model, prompt)
        return (await self._call(self._caller.inference.CountTokens, request, timeout_s)).num_tokens

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """The models that this key may use."""
        tries = self._target.tries(timeout_s)
        method = self._caller.inference.ListModels
        return responses.models(await self._caller.send(method, pb.ListModelsRequest(), tries))

    async def close(self) -> None:
        """End every call and the connection. Calls after it raise RuntimeError."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, method: aio.UnaryUnaryMultiCallable[Named, Response], request: Named, timeout_s: float | None
    ) -> Response:
        tries = self._target.tries(timeout_s)
        return await self._caller.send(method, await self._with_model(request, tries), tries)

    async def _with_model(self, request: Named, tries: Tries) -> Named:
        if not request.model:
            request.model = await self._caller.only_model(tries)
        return request
