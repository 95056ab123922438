"""The public gRPC service gemline.v1.Inference: each method converts, calls, converts. Decides nothing."""

from collections.abc import AsyncIterator
from typing import NamedTuple

from gemline.gateway import grpc_convert as convert
from gemline.gateway.answer import Answer
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_call import Call, Context, greet, named
from gemline.gateway.requests import GenerationRequest, Piece, PositionLogprobs, Prompt
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceServicer


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
        call = await greet(self._gateway, context)
        with named(call.request_id):
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
        call = await greet(self._gateway, context)
        with named(call.request_id):
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
        call = await greet(self._gateway, context)
        with named(call.request_id):
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
        call = await greet(self._gateway, context)
        with named(call.request_id):
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
        call = await greet(self._gateway, context)
        with named(call.request_id):
            prompt = convert.counted_prompt(request)
            num_tokens = await self._gateway.count_tokens(call.tenant, request.model, prompt)
            return pb.CountTokensResponse(num_tokens=num_tokens)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The models that the caller's key may use."""
        call = await greet(self._gateway, context)
        with named(call.request_id):
            return pb.ListModelsResponse(models=map(convert.model, self._gateway.models(call.tenant)))

    async def _answer(self, call: Call, model: str, prompt: Prompt, sampling: pb.SamplingOptions) -> Answer:
        request = GenerationRequest(call.request_id, model, prompt, convert.sampling_options(sampling))
        try:
            return await self._gateway.generate(call.tenant, request, traceparent=call.traceparent)
        finally:
            call.tell_standing()

    async def _whole(self, call: Call, model: str, prompt: Prompt, sampling: pb.SamplingOptions) -> _Whole:
        texts: list[str] = []
        logprobs: list[PositionLogprobs] = []
        async with await self._answer(call, model, prompt, sampling) as answer:
            async for piece in answer:
                texts.append(piece.text)
                logprobs.extend(piece.logprobs)
        return _Whole("".join(texts), logprobs, piece)
