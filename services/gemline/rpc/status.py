"""Our errors as gRPC statuses and back: the code and param travel as trailing metadata. Knows no service."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from math import ceil
from typing import Any, NoReturn

import grpc
import grpc.aio

from gemline import errors
from gemline.errors import GemlineError

CODE_KEY = "gemline-code"
PARAM_KEY = "gemline-param"
PUSHBACK_KEY = "grpc-retry-pushback-ms"  # gRPC's own; -1: do not try again

# gRPC refuses metadata over 8 KiB, and a message grows threefold when it is percent-encoded.
_MAX_MESSAGE_BYTES = 2000
_MAX_PARAM_CHARACTERS = 200

_INTERNAL = errors.InternalError("internal error; the request id leads to its cause in the log")

_BY_STATUS: dict[grpc.StatusCode, tuple[type[GemlineError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (errors.Unavailable, "{peer} cannot be reached"),
    grpc.StatusCode.CANCELLED: (errors.Unavailable, "{peer} ended the call"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, "{peer} did not answer in time"),
    grpc.StatusCode.FAILED_PRECONDITION: (errors.StaleEpoch, "{peer} has been replaced"),
    grpc.StatusCode.UNIMPLEMENTED: (errors.InternalError, "{peer} does not know this call"),
}

Details = Callable[[GemlineError], tuple[tuple[str, bytes], ...]]  # more metadata of an error
Admit = Callable[["grpc.aio.ServicerContext[Any, Any]"], None]  # raises the GemlineError that refuses a caller

logger = logging.getLogger(__name__)


def status_code(error: GemlineError) -> grpc.StatusCode:
    """The error's row of the table in gemline.errors."""
    return grpc.StatusCode[error.grpc_status]


def trailing_metadata(error: GemlineError) -> tuple[tuple[str, str], ...]:
    """What tells the caller the error's class, the field that was wrong, and when to try again."""
    told = [(CODE_KEY, error.code)]
    if error.param is not None:
        told.append((PARAM_KEY, _printable(error.param)))
    if isinstance(error, errors.RateLimited):
        retry_s = error.retry_after_s
        told.append((PUSHBACK_KEY, "-1" if retry_s is None else str(ceil(retry_s * 1e3))))
    return tuple(told)


def _printable(text: str) -> str:
    """Metadata values hold printable ASCII only; a client's own words may be in a param (a logit_bias key)."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_MAX_PARAM_CHARACTERS])


def clipped(message: str) -> str:
    """As much of it as fits into metadata."""
    data = message.encode("utf-8", errors="replace")  # half a surrogate pair, from a client's JSON, has no encoding
    end = "" if len(data) <= _MAX_MESSAGE_BYTES else "..."
    return data[:_MAX_MESSAGE_BYTES].decode("utf-8", errors="ignore") + end


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: GemlineError, details: Details = lambda error: ()
) -> NoReturn:
    """Ends the call with the error's status, after the trailing metadata set so far; raises, never returns."""
    trailing = (*(context.trailing_metadata() or ()), *trailing_metadata(error), *details(error))
    await context.abort(status_code(error), clipped(error.message), trailing)


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str = "a worker") -> GemlineError:
    """The error that the other side aborted with; for a fault of the connection itself, one that names `peer`.

    What gRPC says of a connection (addresses, sockets) is left out: the message may reach a user.
    """
    trailing = dict(error.trailing_metadata() or ())
    if (code := trailing.get(CODE_KEY)) is not None:
        param = trailing.get(PARAM_KEY)
        return errors.from_code(_text(code), error.details() or "", param=None if param is None else _text(param))
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's own size check
        return errors.RequestTooLarge(f"a message to or from {peer} is over the size limit")
    kind, message = _BY_STATUS.get(error.code(), (errors.InternalError, "{peer} failed"))
    return kind(message.format(peer=peer))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a GemlineError that a handler raises into its status, and anything else into INTERNAL, logged here."""

    def __init__(self, details: Details = lambda error: (), admit: Admit = lambda context: None) -> None:
        """`admit` is asked before every handler that there is."""
        self._details = details
        self._admit = admit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler, guarded; None for a method that nobody serves."""
        handler: Any = await continuation(handler_call_details)
        return None if handler is None else _guarded(handler, self._details, self._admit)


# What a handler takes (a message or a stream of them, and the context) and gives depends on the kind of its method.
_Behavior = Callable[[Any, Any], Any]


def _guarded(handler: Any, details: Details, admit: Admit) -> grpc.RpcMethodHandler[Any, Any]:
    kinds = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    name, make = kinds[handler.request_streaming, handler.response_streaming]
    behavior: _Behavior = getattr(handler, name)
    guard = _guard_generator if inspect.isasyncgenfunction(behavior) else _guard_call
    guarded: grpc.RpcMethodHandler[Any, Any] = make(
        guard(behavior, details, admit),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return guarded


def _guard_call(behavior: _Behavior, details: Details, admit: Admit) -> _Behavior:
    @functools.wraps(behavior)
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            admit(context)
            return await behavior(request, context)
        except Exception as error:
            await _abort_with(error, context, details)

    return call


def _guard_generator(behavior: _Behavior, details: Details, admit: Admit) -> _Behavior:
    @functools.wraps(behavior)
    async def generate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        answers = behavior(request, context)
        try:
            admit(context)
            async for answer in answers:
                yield answer
        except Exception as error:
            await _abort_with(error, context, details)
        finally:
            await answers.aclose()  # a broken stream frees what the handler holds now, not when it is collected

    return generate


async def _abort_with(error: Exception, context: grpc.aio.ServicerContext[Any, Any], details: Details) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, GemlineError):
        logger.error("a gRPC handler failed", exc_info=error)
        error = _INTERNAL
    await abort(context, error, details)
