"""A call without a message, or with bytes that are none, is the caller's mistake and told as such.

gRPC by itself would answer the second with UNKNOWN and words of its own, and the first never. Stands behind
ErrorInterceptor, which makes the status of the error.
"""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gemline.errors import DeadlineExceeded, InvalidRequest

ARRIVAL_TIMEOUT_S = 60.0  # from a call's beginning to its message, where it has one
_Context = grpc.aio.ServicerContext
_Behavior = Callable[[Any, Any], Any]
_UNREADABLE = "a message of the call cannot be read: it is not what this method takes"


class RefuseMalformed(grpc.aio.ServerInterceptor):
    """Handlers behind it see messages alone. To gRPC each is one that reads a stream, of which it takes what is due."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler, or what raises InvalidRequest in its place; None for a method that nobody serves."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        many = handler.request_streaming
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behavior = handler.stream_stream if many else handler.unary_stream
            return grpc.stream_stream_rpc_method_handler(_giving_many(behavior, _all if many else _one), **codecs)
        behavior = handler.stream_unary if many else handler.unary_unary
        return grpc.stream_unary_rpc_method_handler(_giving_one(behavior, _all if many else _one), **codecs)


_Take = Callable[[AsyncIterator[Any]], Awaitable[Any]]


async def _one(requests: AsyncIterator[Any]) -> Any:
    try:
        async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
            return await anext(aiter(requests))
    except TimeoutError:
        raise DeadlineExceeded(f"the call has had no message for {ARRIVAL_TIMEOUT_S:g} s") from None
    except StopAsyncIteration:
        raise InvalidRequest("the call has no message; this method takes one") from None
    except DecodeError:
        raise InvalidRequest(_UNREADABLE) from None


async def _all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    return _readable(requests)


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for request in requests:
            yield request
    except DecodeError:
        raise InvalidRequest(_UNREADABLE) from None


def _giving_one(behavior: _Behavior, take: _Take) -> _Behavior:
    async def call(requests: AsyncIterator[Any], context: _Context[Any, Any]) -> Any:
        return await behavior(await take(requests), context)

    return call


def _giving_many(behavior: _Behavior, take: _Take) -> _Behavior:
    """Of a handler that yields what it gives, or that writes it itself."""
    if not inspect.isasyncgenfunction(behavior):
        return _giving_one(behavior, take)

    async def generate(requests: AsyncIterator[Any], context: _Context[Any, Any]) -> AsyncIterator[Any]:
        answers = behavior(await take(requests), context)
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()  # what the handler holds is free now, not when it is collected

    return generate
