"""Errors as OpenAI's clients read them. Knows gemline's errors, no route."""

import json
from math import ceil

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from gemline.errors import (
    GemlineError,
    InvalidRequest,
    MethodNotAllowed,
    PoisonRequest,
    RateLimited,
    RouteNotFound,
    TurnNotSaved,
)

RETRY_AFTER_S = "1"  # for 503: OpenAI's clients wait this long before they try again
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ECHO_CHARS = 200  # of a path, in a message


def error_body(error: GemlineError) -> bytes:
    """The JSON object of one error, ASCII only."""
    fields = {"message": error.message, "type": error.openai_type, "param": error.param, "code": error.code}
    return json.dumps({"error": fields}, separators=(",", ":")).encode()


def error_response(error: GemlineError, *, headers: dict[str, str] | None = None) -> Response:
    """The error as a whole answer, with the headers its status asks for."""
    all_headers = dict(headers or {})
    if error.http_status == 503:
        all_headers["retry-after"] = RETRY_AFTER_S
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        all_headers["retry-after"] = str(ceil(error.retry_after_s))
        all_headers["retry-after-ms"] = str(ceil(error.retry_after_s * 1e3))
    never_fits = isinstance(error, RateLimited) and error.retry_after_s is None
    if isinstance(error, PoisonRequest | TurnNotSaved) or never_fits:
        all_headers["x-should-retry"] = "false"  # OpenAI's clients would try again for any other 5xx or 429
    if error.http_status == 401:
        all_headers["www-authenticate"] = "Bearer"
    return Response(error_body(error), error.http_status, all_headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router refuses by itself: no such path, no such method, or a request that it could not read."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:_ECHO_CHARS]
    match error.status_code:
        case 404:
            return error_response(RouteNotFound(f"there is nothing at {request.method} {path}"))
        case 405:
            allowed = ", ".join(_allowed_methods(request))
            message = f"{path} does not take {request.method}; it takes {allowed}"
            return error_response(MethodNotAllowed(message), headers={"allow": allowed})
        case _:
            return error_response(InvalidRequest(f"the request cannot be read: {error.detail}"))


def _allowed_methods(request: Request) -> list[str]:
    """All that the path takes: the router names those of the first route there alone, and each method has its own."""
    routes = request.app.router.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
