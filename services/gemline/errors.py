"""What can go wrong, as a user is told it: one tree and one table for HTTP, gRPC and the SDK. Knows no framework.

GemlineError                    code                        HTTP  gRPC
├── InvalidRequest              invalid_request             400   INVALID_ARGUMENT     `param` names the field
│   ├── ContextLengthExceeded   context_length_exceeded     400   INVALID_ARGUMENT
│   └── RequestTooLarge         request_too_large           413   INVALID_ARGUMENT
├── Unauthenticated             invalid_api_key             401   UNAUTHENTICATED
├── Forbidden                   forbidden                   403   PERMISSION_DENIED    the key is known and may not
│   └── ModelNotAllowed         model_not_allowed           403   PERMISSION_DENIED
├── RateLimited                 rate_limit_exceeded         429   RESOURCE_EXHAUSTED   a limit of the caller's own
│   └── QuotaExceeded           insufficient_quota          429   RESOURCE_EXHAUSTED   of a day or a month
├── NotFound                    resource_not_found          404   NOT_FOUND            for operators
├── ModelNotFound               model_not_found             404   NOT_FOUND
├── SessionNotFound             session_not_found           404   NOT_FOUND            the caller has none of that id
├── RouteNotFound               not_found                   404   UNIMPLEMENTED
├── MethodNotAllowed            method_not_allowed          405   UNIMPLEMENTED
├── Overloaded                  overloaded                  503   RESOURCE_EXHAUSTED   nothing generated; retry later
├── Unavailable                 unavailable                 503   UNAVAILABLE          no worker can take it now
│   ├── WorkerLost              worker_lost                 503   UNAVAILABLE          the worker died under the request
│   └── TurnNotSaved            turn_not_saved              503   UNAVAILABLE          the session may lack the answer
├── DeadlineExceeded            deadline_exceeded           504   DEADLINE_EXCEEDED
├── Conflict                    conflict                    409   ABORTED              another call changes the same
├── StaleEpoch                  stale_epoch                 409   FAILED_PRECONDITION  the caller meant another worker
├── PoisonRequest               poison_request              500   INTERNAL             workers died of it; do not retry
├── InternalError               internal_error              500   INTERNAL             says nothing of the inside
└── ConfigurationError          configuration_error         -     -                    at start: names file or option
    └── CheckpointError         checkpoint_error            -     -
"""

from typing import ClassVar


class GemlineError(Exception):
    """Base of all errors whose message is meant for the user.

    `code`, `http_status`, `grpc_status` (a name of grpc.StatusCode) and `openai_type` are the class's row of the table.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(GemlineError):
    """The request itself is wrong; `param` names the field."""

    code, http_status, grpc_status, openai_type = "invalid_request", 400, "INVALID_ARGUMENT", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt and max_tokens, do not fit the model's context; the message holds the numbers."""

    code = "context_length_exceeded"


class RequestTooLarge(InvalidRequest):
    """The body is over the limit; the message holds both sizes in bytes."""

    code, http_status = "request_too_large", 413


class Unauthenticated(GemlineError):
    """No API key, or one that nobody has."""

    code, http_status, grpc_status, openai_type = "invalid_api_key", 401, "UNAUTHENTICATED", "authentication_error"


class Forbidden(GemlineError):
    """The key is known, and may not do this."""

    code, http_status, grpc_status, openai_type = "forbidden", 403, "PERMISSION_DENIED", "permission_error"


class ModelNotAllowed(Forbidden):
    """The model is there, but not for this key."""

    code = "model_not_allowed"


class RateLimited(GemlineError):
    """A limit of the caller's, not of the platform's; the message holds limit, use and what was asked.

    `retry_after_s`: when it may fit; None: never, as it is over the whole limit.
    """

    code, http_status, grpc_status, openai_type = "rate_limit_exceeded", 429, "RESOURCE_EXHAUSTED", "rate_limit_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class QuotaExceeded(RateLimited):
    """The budget of a day or a month is spent."""

    code, openai_type = "insufficient_quota", "insufficient_quota"


class NotFound(GemlineError):
    """There is nothing of that name."""

    code, http_status, grpc_status, openai_type = "resource_not_found", 404, "NOT_FOUND", "invalid_request_error"


class ModelNotFound(GemlineError):
    """No worker serves a model of that name."""

    code, http_status, grpc_status, openai_type = "model_not_found", 404, "NOT_FOUND", "invalid_request_error"


class SessionNotFound(GemlineError):
    """The caller has no session of that id: there never was one, its time is over, or it is another tenant's."""

    code, http_status, grpc_status, openai_type = "session_not_found", 404, "NOT_FOUND", "invalid_request_error"


class RouteNotFound(GemlineError):
    """No such path."""

    code, http_status, grpc_status, openai_type = "not_found", 404, "UNIMPLEMENTED", "invalid_request_error"


class MethodNotAllowed(GemlineError):
    """The path is there, the HTTP method is not."""

    code, http_status, grpc_status, openai_type = "method_not_allowed", 405, "UNIMPLEMENTED", "invalid_request_error"


class Overloaded(GemlineError):
    """Every queue is full; nothing was generated."""

    code, http_status, grpc_status = "overloaded", 503, "RESOURCE_EXHAUSTED"


class Unavailable(GemlineError):
    """No worker can take the request now."""

    code, http_status, grpc_status = "unavailable", 503, "UNAVAILABLE"


class WorkerLost(Unavailable):
    """The worker died, or its stream broke, while it held the request."""

    code = "worker_lost"


class TurnNotSaved(Unavailable):
    """The answer was generated but could not be added to its session; whether it was at last is not known."""

    code = "turn_not_saved"


class DeadlineExceeded(GemlineError):
    """The caller's time ran out."""

    code, http_status, grpc_status, openai_type = "deadline_exceeded", 504, "DEADLINE_EXCEEDED", "timeout_error"


class Conflict(GemlineError):
    """Another call changes the same thing now."""

    code, http_status, grpc_status, openai_type = "conflict", 409, "ABORTED", "invalid_request_error"


class StaleEpoch(GemlineError):
    """The caller meant an earlier or later life of this worker."""

    code, http_status, grpc_status = "stale_epoch", 409, "FAILED_PRECONDITION"


class PoisonRequest(GemlineError):
    """Workers were lost under this request one after the other; its prompt is refused for a while."""

    code = "poison_request"


class InternalError(GemlineError):
    """A fault of ours; the message tells the user nothing of the inside."""


class ConfigurationError(GemlineError):
    """Something given at start is wrong; the message names the option or file."""

    code = "configuration_error"


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be served; the message names the file and the tensor."""

    code = "checkpoint_error"


def _tree(root: type[GemlineError]) -> list[type[GemlineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[GemlineError]] = {
    error.code: error for error in reversed(_tree(GemlineError)) if error is not GemlineError
}


def from_code(code: str, message: str, *, param: str | None = None) -> GemlineError:
    """The error of that `code`, as another process named it; an unknown code gives InternalError."""
    return BY_CODE.get(code, InternalError)(message, param=param)
