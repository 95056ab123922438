"""The key check in front of the public gRPC server: all that is registered there is closed, but the health probe."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from gemline.errors import GemlineError
from gemline.gateway.core import Gateway, bearer_key, new_request_id
from gemline.gateway.grpc_details import rich_details
from gemline.rpc.status import abort

AUTHORIZATION_KEY = "authorization"
REQUEST_ID_KEY = "x-request-id"
OPEN_PREFIX = "/grpc.health.v1.Health/"

Metadata = Iterable[tuple[str, str | bytes]]
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


def metadata_value(metadata: Metadata | None, key: str) -> str:
    """The value of a text key, empty when it is not there."""
    found = dict(metadata or ()).get(key, "")
    return found if isinstance(found, str) else ""


def bearer(metadata: Metadata | None) -> str | None:
    """The API key of `authorization: Bearer <key>`, None when there is none."""
    return bearer_key(metadata_value(metadata, AUTHORIZATION_KEY))


async def name_call(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """A request id for the call, told to the caller before the answer and, for a call that fails at once, after it:

    grpc.aio's client may lose the initial metadata of a call whose status comes right behind it.
    """
    request_id = new_request_id()
    named = ((REQUEST_ID_KEY, request_id),)
    context.set_trailing_metadata(named)
    await context.send_initial_metadata(named)
    return request_id


class KeyCheck(grpc.aio.ServerInterceptor):
    """Ends a call without a valid key before its handler is looked for, so that nothing can be left open by mistake."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler, or one that refuses."""
        if not handler_call_details.method.startswith(OPEN_PREFIX):
            try:
                await self._gateway.authenticate(bearer(handler_call_details.invocation_metadata))
            except GemlineError as error:
                return _refusal(error)
        return await continuation(handler_call_details)


def _refusal(error: GemlineError) -> grpc.RpcMethodHandler[Any, Any]:
    """Takes no message, so it fits a method of any kind."""

    async def refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await name_call(context)
        await abort(context, error, rich_details)

    return grpc.stream_stream_rpc_method_handler(refuse)
