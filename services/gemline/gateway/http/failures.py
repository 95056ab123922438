"""The errors of an API as responses of its document, made from the tree of errors. Knows no route."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from gemline.errors import GemlineError
from gemline.gateway.http.docs import JSON, REF

_DIGITS = {"type": "string", "pattern": "^[0-9]+$"}
_WHEN = {"description": "Seconds until it may be tried again.", "schema": _DIGITS}
_WHEN_MS = {"description": "The same in milliseconds.", "schema": _DIGITS}
_NEVER = {"description": "To try again is useless.", "schema": {"type": "string", "const": "false"}}
_SCHEME = {"description": "How a key is sent.", "schema": {"type": "string", "const": "Bearer"}, "required": True}
# What an error's status may bring besides the body; `errors.py` sets them.
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"www-authenticate": _SCHEME},
    429: {"retry-after": _WHEN, "retry-after-ms": _WHEN_MS, "x-should-retry": _NEVER},
    500: {"x-should-retry": _NEVER},
    503: {"retry-after": {**_WHEN, "required": True}, "x-should-retry": _NEVER},
}


def failures(errors: Iterable[type[GemlineError]]) -> dict[str, Any]:
    """A response for each status among them, which names the codes that it may come with."""
    ordered = sorted(set(errors), key=lambda error: (error.http_status, error.code))
    return {str(status): _response(status, list(some)) for status, some in groupby(ordered, lambda it: it.http_status)}


def _response(status: int, errors: list[type[GemlineError]]) -> dict[str, Any]:
    lines = [f"- `{error.code}`: {_first_line(error)}" for error in errors]
    of_these = {
        "code": {"enum": sorted({error.code for error in errors})},
        "type": {"enum": sorted({error.openai_type for error in errors})},
    }
    schema = {
        "allOf": [
            {"$ref": REF.format(model="ErrorAnswer")},
            {"properties": {"error": {"properties": of_these}}},
        ]
    }
    content = {JSON: {"schema": schema}}
    return {"description": "\n".join(lines), "headers": dict(_HEADERS.get(status, {})), "content": content}


def _first_line(error: type[GemlineError]) -> str:
    return (error.__doc__ or "").strip().partition("\n")[0]
