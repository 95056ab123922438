"""From what a user wrote about an answer's form to the core's word for it. Pure; what takes time is the worker's."""

import json
from collections.abc import Mapping
from typing import Any

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.grammar.limits import MAX_BYTES, MAX_DEPTH

PARAM = "response_format"
ANY_OBJECT = {"type": "object"}


def json_object() -> Constraint:
    """Any JSON object."""
    return Constraint(Syntax.JSON_SCHEMA, json.dumps(ANY_OBJECT))


def json_schema(schema: Mapping[str, Any], *, strict: bool = False, param: str = PARAM) -> Constraint:
    """A JSON value that the schema accepts. Unless `strict`, keywords that cannot be kept to are passed over.

    Raises InvalidRequest for one that is nested too deeply or too large.
    """
    return of_text(Syntax.JSON_SCHEMA, schema_text(schema, param), lenient=not strict, param=param)


def of_text(syntax: Syntax, text: str, *, lenient: bool = False, param: str = PARAM) -> Constraint:
    """A constraint as it was written; raises InvalidRequest for one that is empty, too large or no Unicode."""
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        message = f"{param} is not valid Unicode: half a surrogate pair at character {error.start}"
        raise InvalidRequest(message, param=param) from error
    if not text.strip():
        raise InvalidRequest(f"{param}: the {syntax.value} is empty", param=param)
    if num_bytes > MAX_BYTES:
        message = f"{param}: the {syntax.value} has {num_bytes} bytes; at most {MAX_BYTES} are taken"
        raise InvalidRequest(message, param=param)
    return Constraint(syntax, text, param, lenient)


def schema_text(schema: Mapping[str, Any], param: str, where: str = "") -> str:
    """The schema as JSON; raises InvalidRequest, with `where` it stands, when it is nested too deeply."""
    depth = _depth(schema)
    if depth > MAX_DEPTH:
        message = f"{where or param}: the schema is {depth} levels deep; at most {MAX_DEPTH} are taken"
        raise InvalidRequest(message, param=param)
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _depth(value: object) -> int:
    """How many objects and lists are in each other; without recursion, for a hostile one is deep."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        one, depth = todo.pop()
        inner = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else None
        if inner is not None:
            deepest = max(deepest, depth)
            todo += [(item, depth + 1) for item in inner]
    return deepest
