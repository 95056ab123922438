"""Errors as gRPC's rich ones (google.rpc.Status in the trailing metadata): what a client can act upon by itself."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from gemline.errors import GemlineError, InvalidRequest, Overloaded, RateLimited, Unavailable
from gemline.rpc.status import clipped, status_code

KEY = "grpc-status-details-bin"
DOMAIN = "gemline"
_RETRY_S = 1.0  # for what is ours and passes


def rich_details(error: GemlineError) -> tuple[tuple[str, bytes], ...]:
    """ErrorInfo with the code; RetryInfo where it may help, QuotaFailure for a limit, BadRequest for a field."""
    details: list[Message] = [ErrorInfo(reason=error.code.upper(), domain=DOMAIN)]
    if (retry_s := _retry_s(error)) is not None:
        delay = Duration()
        delay.FromMilliseconds(round(retry_s * 1e3))
        details.append(RetryInfo(retry_delay=delay))
    message = clipped(error.message)
    if isinstance(error, RateLimited):
        details.append(QuotaFailure(violations=[QuotaFailure.Violation(subject=error.code, description=message)]))
    if isinstance(error, InvalidRequest) and error.param:
        violation = BadRequest.FieldViolation(field=clipped(error.param), description=message)
        details.append(BadRequest(field_violations=[violation]))
    status = Status(code=status_code(error).value[0], message=message, details=map(_packed, details))
    return ((KEY, status.SerializeToString()),)


def _retry_s(error: GemlineError) -> float | None:
    if isinstance(error, RateLimited):
        return error.retry_after_s
    return _RETRY_S if isinstance(error, Overloaded | Unavailable) else None


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
