"""What the admin API's OpenAPI document says besides the routes: its bodies, its key, and who acts."""

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from gemline.gateway.admin.schemas import (
    ChangeKeyBody,
    ChangeProjectBody,
    ChangeTenantBody,
    NewKeyBody,
    NewProjectBody,
    NewTenantBody,
    PrefixBody,
    RotateBody,
)

_CHANGES = (ChangeTenantBody, ChangeProjectBody, ChangeKeyBody)
_BODIES = (*_CHANGES, NewTenantBody, NewProjectBody, NewKeyBody, RotateBody, PrefixBody)
_ACTOR = {
    "name": "x-actor",
    "in": "header",
    "schema": {"type": "string", "maxLength": 100},
    "description": "Who acts, for the audit.",
}


def complete_admin_docs(app: FastAPI) -> None:
    """Add them to the document that FastAPI makes and keeps."""
    document = app.openapi()
    components = document.setdefault("components", {})
    _, bodies = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
    )
    components.setdefault("schemas", {}).update(bodies["$defs"])
    components["securitySchemes"] = {"admin key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"admin key": []}]
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method != "get":
                operation.setdefault("parameters", []).append(_ACTOR)
