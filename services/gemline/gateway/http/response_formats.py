"""`response_format` of OpenAI's bodies, and two kinds of our own: regex and grammar."""

from typing import Any, Literal

from pydantic import Field

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.gateway.constraints import json_object, json_schema, of_text
from gemline.gateway.http.bodies import Body


class JsonSchemaFormat(Body):
    """A schema and its name. Without `strict`, keywords that cannot be kept to are passed over."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer must look like: the field named like its type says more. A grammar is Lark's."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchemaFormat | None = None
    regex: str | None = None
    grammar: str | None = None


def constraint_of(wanted: ResponseFormat | None) -> Constraint | None:
    """Raises InvalidRequest for what is too large or too deep, and for a type without its field."""
    match wanted:
        case None | ResponseFormat(type="text"):
            return None
        case ResponseFormat(type="json_object"):
            return json_object()
        case ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat() as given):
            return json_schema(given.schema_, strict=bool(given.strict))
        case ResponseFormat(type="regex", regex=str() as text):
            return of_text(Syntax.REGEX, text)
        case ResponseFormat(type="grammar", grammar=str() as text):
            return of_text(Syntax.GRAMMAR, text)
    missing = f"response_format.{wanted.type}"
    raise InvalidRequest(f"{missing} is required where response_format.type is {wanted.type!r}", param=missing)
