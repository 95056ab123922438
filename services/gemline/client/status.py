"""From a failed call to the error of gemline.errors that is meant: metadata says it exactly, else the status does."""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from gemline import errors
from gemline.errors import GemlineError

_BY_STATUS: dict[grpc.StatusCode, type[GemlineError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.NOT_FOUND: errors.ModelNotFound,
    grpc.StatusCode.UNIMPLEMENTED: errors.RouteNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,  # by the other side: a gateway that stops
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.StaleEpoch,
}


_PASSES = {errors.Overloaded.code, errors.RateLimited.code}
_REFUSALS = {error.code for error in (errors.Unavailable, errors.Overloaded, errors.WorkerLost)}


def error_of(failure: grpc.RpcError, address: str, timeout_s: float | None = None) -> GemlineError:
    """The typed error, ready to raise."""
    metadata = trailing_metadata(failure)
    details = failure.details() or failure.code().name
    if (code := metadata.get("gemline-code")) in errors.BY_CODE:
        error = errors.from_code(code, details, param=metadata.get("gemline-param"))
        if isinstance(error, errors.RateLimited):
            error.retry_after_s = pushback_s(failure)
        return error
    match failure.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED if timeout_s is not None:
            return errors.DeadlineExceeded(f"no whole answer from {address} within {timeout_s:g} s")
        case grpc.StatusCode.UNAVAILABLE if not code:
            return errors.Unavailable(f"cannot reach the gateway at {address}: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return errors.RequestTooLarge(details)
        case status:
            return _BY_STATUS.get(status, errors.InternalError)(details, param=metadata.get("gemline-param"))


def may_retry(failure: grpc.RpcError) -> bool:
    """Whether the same request may well succeed a little later; only asked while it has given nothing yet."""
    match failure.code():
        case grpc.StatusCode.UNAVAILABLE:
            return True
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return trailing_metadata(failure).get("gemline-code") in _PASSES
        case _:
            return False


def was_refused(failure: grpc.RpcError) -> bool:
    """Whether the gateway itself says that it did nothing, and might a little later."""
    return trailing_metadata(failure).get("gemline-code") in _REFUSALS


def pushback_s(failure: grpc.RpcError) -> float | None:
    """The least pause the server asks for, by gRPC's own convention; None when it asks not to be tried again."""
    text = trailing_metadata(failure).get("grpc-retry-pushback-ms", "0")
    return int(text) / 1000 if text.isdecimal() else None


def trailing_metadata(failure: grpc.RpcError) -> Mapping[str, str]:
    """The text entries of the trailing metadata; none when the call never reached a server."""
    entries: Iterable[Any] = (
        failure.trailing_metadata() or ()
    )  # pairs; the sync and the async API type them differently
    return {key: value for key, value in entries if isinstance(value, str)}
