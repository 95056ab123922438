"""What a route tells of itself for the OpenAPI document: what it takes, what it answers, and how it may fail."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemline.errors import GemlineError
from gemline.gateway.http.bodies import Body

REF = "#/components/schemas/{model}"
GIVES = "x-gives"  # of an operation until document.py has made its responses of it
JSON = "application/json"
EVENTS = "text/event-stream"
Schema = Mapping[str, Any]


def ref(model: type) -> dict[str, Any]:
    """The schema of that name."""
    return {"$ref": REF.format(model=model.__name__)}


def takes(schema: type[Body], *, required: bool = True) -> dict[str, Any]:
    """For a route's openapi_extra: the body it reads."""
    return {"requestBody": {"required": required, "content": {JSON: {"schema": ref(schema)}}}}


def asks(**schemas: Schema) -> dict[str, Any]:
    """For a route's openapi_extra: the query parameters it reads, none of which must be there."""
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]}


def gives(
    answer: type | None = None,
    fails: Sequence[type[GemlineError]] = (),
    *,
    status: int = 200,
    events: type | None = None,
    texts: Mapping[str, Schema] | None = None,
    headers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """For a route's openapi_extra: its answer, what it is streamed as, and the errors that only such routes have.

    `texts`: other media types, with their schemas; `headers`: those that every good answer has, with what they say.
    """
    content: dict[str, Any] = {} if answer is None else {JSON: {"schema": ref(answer)}}
    if events is not None:
        content[EVENTS] = {"schema": _events(events)}
    content |= {media_type: {"schema": dict(schema)} for media_type, schema in (texts or {}).items()}
    told = {"status": status, "content": content, "fails": [error.code for error in fails]}
    return {GIVES: told | {"headers": dict(headers or {})}}


def _events(chunk: type) -> dict[str, Any]:
    data = {
        "type": "string",
        "contentMediaType": JSON,
        "contentSchema": {"anyOf": [ref(chunk), {"$ref": REF.format(model="ErrorAnswer")}]},
    }
    return {
        "type": "object",  # an event
        "properties": {"data": {"anyOf": [{"type": "string", "const": "[DONE]"}, data]}},
        "required": ["data"],
        "description": "With `stream`: an event `data: <JSON>` for each piece, and `data: [DONE]` at the end. A stream"
        " that fails ends with an event that holds an error, without [DONE].",
    }
