"""From the bytes of a body to a schema, or to an InvalidRequest that names the field. Knows no route."""

import json
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from gemline.errors import InvalidRequest
from gemline.gateway.http.bodies import Body

_B = TypeVar("_B", bound=Body)

_ECHO_CHARS = 60  # of a wrong value, in a message


async def read_body(request: Request, schema: type[_B]) -> _B:
    """The body of a request; its content type is not looked at."""
    return parse_body(await request.body(), schema)


def parse_body(body: bytes, schema: type[_B]) -> _B:
    """Raises InvalidRequest, with `param` where a field is at fault."""
    fields = _parse_object(body)
    for name, harmless in schema.unsupported.items():
        value = fields.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
            raise InvalidRequest(f"{name} is not supported{_instead(harmless)}", param=name)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise _first_error(error) from None


def _parse_object(body: bytes) -> dict[str, object]:
    if not body:
        raise InvalidRequest("the body is empty; it must be a JSON object")
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_shown(fields)}")
    return fields


def _instead(harmless: tuple[object, ...]) -> str:
    return f"; leave it out or set it to {' or '.join(map(json.dumps, harmless))}" if harmless else ""


def _first_error(error: ValidationError) -> InvalidRequest:
    details = error.errors(include_url=False)[0]
    param = _path(details)
    return InvalidRequest(f"{param} {_complaint(details)}", param=param)


def _path(details: ErrorDetails) -> str:
    """The field as one would write it: messages[0].content[1].type."""
    path = ""
    for step in details["loc"]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _complaint(details: ErrorDetails) -> str:
    """What is wrong with a field, to be read after its name."""
    message = details["msg"].replace("Input should be", "must be", 1)
    match details["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is no field here"
        case "model_type" | "dict_type":
            return f"must be an object, not {_shown(details['input'])}"
        case _ if message.startswith("must"):
            return f"{message}, not {_shown(details['input'])}"
        case _:
            return message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    """A scalar as JSON, cut when it is long; of a list or an object only what it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _ECHO_CHARS else f"{text[:_ECHO_CHARS]}..."
