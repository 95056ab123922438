"""The public gRPC service gemline.v1.Inference: each method converts, calls, converts. Decides nothing."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

from collections.abc import AsyncIterator
from typing import NamedTuple

from gemline.cluster.access import Band
from gemline.errors import InvalidRequest
from gemline.gateway import grpc_convert as convert
from gemline.gateway.answer import Answer
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_call import Call, Context, called
from gemline.gateway.grpc_formats import tool_use
from gemline.gateway.requests import CallDelta, Piece, PositionLogprobs, Prompt
from gemline.gateway.tools import ToolUse
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceServicer

_Asking = pb.GenerateRequest | pb.GenerateStreamRequest | pb.ChatRequest | pb.ChatStreamRequest


class _Whole(NamedTuple):
    """All pieces of an answer put together."""

    text: str
    logprobs: list[PositionLogprobs]
    calls: list[CallDelta]
    last: Piece


class PublicServicer(InferenceServicer):
    """Stands behind KeyCheck and ErrorInterceptor, which turns the errors of gemline.errors into statuses.

    However a call ends (the client cancels, leaves or runs out of time), its answer is closed at once.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """The whole continuation of a prompt."""
        async with called(self._gateway, context, asks_for_tokens=True) as call:
            prompt = convert.text_prompt(request.prompt)
            _refuse_tools(request.sampling)
            whole = await self._whole(call, request, prompt)
            return pb.GenerateResponse(
                request_id=call.request_id,
                text=whole.text,
                finish_reason=convert.finish_reason(whole.last),
                usage=convert.usage(whole.last.usage),
                logprobs=convert.logprobs(whole.logprobs),
                band=convert.served_band(whole.last, _band(call, request)),
            )

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """The continuation of a prompt, piece by piece."""
        async with called(self._gateway, context, asks_for_tokens=True) as call:
            prompt = convert.text_prompt(request.prompt)
            _refuse_tools(request.sampling)
            band = _band(call, request)
            async with await self._answer(call, request, prompt) as answer:
                async for piece in answer:
                    yield pb.GenerateStreamResponse(
                        request_id=call.request_id,
                        text=piece.text,
                        finish_reason=convert.finish_reason(piece),
                        usage=convert.usage(piece.usage),
                        logprobs=convert.logprobs(piece.logprobs),
                        band=convert.served_band(piece, band),
                    )

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.ChatResponse:
        """The model's whole turn."""
        async with called(self._gateway, context, asks_for_tokens=True) as call:
            use = tool_use(request.sampling.tools)
            prompt = convert.chat_prompt(request.messages, use)
            whole = await self._whole(call, request, prompt, use)
            return pb.ChatResponse(
                request_id=call.request_id,
                message=pb.Message(
                    role=pb.ROLE_ASSISTANT, content=whole.text, tool_calls=convert.whole_calls(whole.calls)
                ),
                finish_reason=convert.finish_reason(whole.last),
                usage=convert.usage(whole.last.usage),
                logprobs=convert.logprobs(whole.logprobs),
                band=convert.served_band(whole.last, _band(call, request)),
            )

    async def ChatStream(self, request: pb.ChatStreamRequest, context: Context) -> AsyncIterator[pb.ChatStreamResponse]:
        """The model's turn, piece by piece."""
        async with called(self._gateway, context, asks_for_tokens=True) as call:
            use = tool_use(request.sampling.tools)
            prompt = convert.chat_prompt(request.messages, use)
            band = _band(call, request)
            async with await self._answer(call, request, prompt, use) as answer:
                async for piece in answer:
                    yield pb.ChatStreamResponse(
                        request_id=call.request_id,
                        text=piece.text,
                        finish_reason=convert.finish_reason(piece),
                        usage=convert.usage(piece.usage),
                        logprobs=convert.logprobs(piece.logprobs),
                        band=convert.served_band(piece, band),
                        tool_calls=convert.calls(piece.calls),
                    )

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """The length of a prompt or of a conversation."""
        async with called(self._gateway, context) as call:
            prompt = convert.counted_prompt(request)
            num_tokens = await self._gateway.count_tokens(call.tenant, request.model, prompt)
            return pb.CountTokensResponse(num_tokens=num_tokens)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """The models that the caller's key may use."""
        async with called(self._gateway, context) as call:
            return pb.ListModelsResponse(models=map(convert.model, self._gateway.models(call.tenant)))

    async def _answer(self, call: Call, request: _Asking, prompt: Prompt, use: ToolUse | None = None) -> Answer:
        options, band = convert.sampling_options(request.sampling, use), convert.asked_band(request.band)
        asked = call.asks(request.model, prompt, options, band=band, reads_calls=use is not None)
        return await self._gateway.generate(call.tenant, asked, traceparent=call.traceparent)

    async def _whole(self, call: Call, request: _Asking, prompt: Prompt, use: ToolUse | None = None) -> _Whole:
        texts: list[str] = []
        logprobs: list[PositionLogprobs] = []
        calls: list[CallDelta] = []
        async with await self._answer(call, request, prompt, use) as answer:
            async for piece in answer:
                texts.append(piece.text)
                logprobs.extend(piece.logprobs)
                calls.extend(piece.calls)
        return _Whole("".join(texts), logprobs, calls, piece)


def _band(call: Call, request: _Asking) -> Band:
    return call.tenant.band(convert.asked_band(request.band))


def _refuse_tools(sampling: pb.SamplingOptions) -> None:
    if sampling.tools.tools:
        raise InvalidRequest("tools are for the answers of chats", param="tools")
