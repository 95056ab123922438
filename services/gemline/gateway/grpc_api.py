"""The public gRPC service gemline.v1.Inference: each method converts, calls, converts. Decides nothing."""

from __future__ import annotations  # a context's message types are in the type stubs alone

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc.aio

from gemline.errors import GemlineError, InternalError
from gemline.gateway import grpc_convert as convert
from gemline.gateway.answer import Answer
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_auth import bearer, metadata_value, name_call
from gemline.gateway.requests import GenerationRequest, Piece, PositionLogprobs, Prompt, Tenant
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceServicer

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class _Call(NamedTuple):
    """Who calls, and the name of what they ask for."""

    tenant: Tenant
    request_id: str
    traceparent: str


class _Whole(NamedTuple):
    """All pieces of an answer put together."""

    text: str
    logprobs: list[PositionLogprobs]
    last: Piece


class PublicServicer(InferenceServicer):
    """Stands behind KeyCheck and ErrorInterceptor, which turns the errors of gemline.errors into statuses.

    However a call ends (the client cancels, leaves or runs out of time), its answer is closed at once.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The whole continuation of a prompt."""
        call = await self._greet(context)
        with _named(call.request_id):
            prompt = convert.text_prompt(request.prompt)
            whole = await self._whole(call, request.model, prompt, request.sampling)
            return pb.GenerateResponse(
                request_id=call.request_id,
                text=whole.text,
                finish_reason=convert.finish_reason(whole.last),
                usage=convert.usage(whole.last.usage),
                logprobs=convert.logprobs(whole.logprobs),
            )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """The continuation of a prompt, piece by piece."""
        call = await self._greet(context)
        with _named(call.request_id):
            prompt = convert.text_prompt(request.prompt)
            async with await self._answer(call, request.model, prompt, request.sampling) as answer:
                async for piece in answer:
                    yield pb.GenerateStreamResponse(
                        request_id=call.request_id,
                        text=piece.text,
                        finish_reason=convert.finish_reason(piece),
                        usage=convert.usage(piece.usage),
                        logprobs=convert.logprobs(piece.logprobs),
                    )

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:
        """The model's whole turn."""
        call = await self._greet(context)
        with _named(call.request_id):
            prompt = convert.chat_prompt(request.messages)
            whole = await self._whole(call, request.model, prompt, request.sampling)
            return pb.ChatResponse(
                request_id=call.request_id,
                message=pb.Message(role=pb.ROLE_ASSISTANT, content=whole.text),
                finish_reason=convert.finish_reason(whole.last),
                usage=convert.usage(whole.last.usage),
                logprobs=convert.logprobs(whole.logprobs),
            )

    async def ChatStream(self, request: pb.ChatStreamRequest, context: Context) -> AsyncIterator[pb.ChatStreamResponse]:
        """The model's turn, piece by piece."""
        call = await self._greet(context)
        with _named(call.request_id):
            prompt = convert.chat_prompt(request.messages)
            async with await self._answer(call, request.model, prompt, request.sampling) as answer:
                async for piece in answer:
                    yield pb.ChatStreamResponse(
                        request_id=call.request_id,
                        text=piece.text,
                        finish_reason=convert.finish_reason(piece),
                        usage=convert.usage(piece.usage),
                        logprobs=convert.logprobs(piece.logprobs),
                    )

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """The length of a prompt or of a conversation."""
        call = await self._greet(context)
        with _named(call.request_id):
            prompt = convert.counted_prompt(request)
            num_tokens = await self._gateway.count_tokens(call.tenant, request.model, prompt)
            return pb.CountTokensResponse(num_tokens=num_tokens)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The models that the caller's key may use."""
        call = await self._greet(context)
        with _named(call.request_id):
            return pb.ListModelsResponse(models=map(convert.model, self._gateway.models(call.tenant)))

    async def _greet(self, context: Context) -> _Call:
        """Names the call, to the caller too, and finds out whose it is."""
        metadata = context.invocation_metadata()
        request_id = await name_call(context)
        tenant = await self._gateway.authenticate(bearer(metadata))
        return _Call(tenant, request_id, metadata_value(metadata, "traceparent"))

    async def _answer(self, call: _Call, model: str, prompt: Prompt, sampling: pb.SamplingOptions) -> Answer:
        request = GenerationRequest(call.request_id, model, prompt, convert.sampling_options(sampling))
        return await self._gateway.generate(call.tenant, request, traceparent=call.traceparent)

    async def _whole(self, call: _Call, model: str, prompt: Prompt, sampling: pb.SamplingOptions) -> _Whole:
        texts: list[str] = []
        logprobs: list[PositionLogprobs] = []
        async with await self._answer(call, model, prompt, sampling) as answer:
            async for piece in answer:
                texts.append(piece.text)
                logprobs.extend(piece.logprobs)
        return _Whole("".join(texts), logprobs, piece)


@contextmanager
def _named(request_id: str) -> Iterator[None]:
    """Inside, what is not an error of ours is logged under the request's name and hidden from the caller."""
    try:
        yield
    except GemlineError:
        raise
    except Exception as error:
        log.exception("request %s failed", request_id)
        raise InternalError(f"internal error; request id {request_id}") from error
