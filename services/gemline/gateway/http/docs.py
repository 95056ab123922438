"""What /openapi.json says besides the routes: our bodies, which FastAPI does not parse, and the key."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from gemline.gateway.http.bodies import Body
from gemline.gateway.http.keys import OPEN_PATHS
from gemline.gateway.http.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ForkBody,
    SessionBody,
    TokenizeBody,
    TurnBody,
)

_REF = "#/components/schemas/{model}"
_BODIES = (ChatBody, TurnBody, CompletionBody, SessionBody, ForkBody, TokenizeBody, DetokenizeBody)


def takes(schema: type[Body], *, required: bool = True) -> dict[str, Any]:
    """For a route's openapi_extra: the body it reads."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=schema.__name__)}}}
    return {"requestBody": {"required": required, "content": content}}


def asks(**schemas: dict[str, Any]) -> dict[str, Any]:
    """For a route's openapi_extra: the query parameters it reads, none of which must be there."""
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]}


def complete_docs(app: FastAPI) -> None:
    """Add the bodies and the key to the document that FastAPI makes and keeps."""
    document = app.openapi()
    components = document.setdefault("components", {})
    _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REF)
    components.setdefault("schemas", {}).update(bodies["$defs"])
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for path in OPEN_PATHS & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []
