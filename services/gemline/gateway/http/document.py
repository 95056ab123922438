"""Completes the OpenAPI document of an app: from what its routes say, and what all of them have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gemline.errors import BY_CODE, GemlineError, InternalError, InvalidRequest, RequestTooLarge
from gemline.gateway.http.docs import GIVES, REF, Schema
from gemline.gateway.http.failures import failures

_EVERYWHERE: tuple[type[GemlineError], ...] = (InternalError, RequestTooLarge)
_ID = {"type": "string", "pattern": "^[!-~]{1,128}$"}
_IDS: dict[str, Schema] = {
    "x-request-id": {
        "description": "Our name for the request.",
        "required": True,
        "schema": {"type": "string", "pattern": "^req_[0-9a-f]{24}$"},
    },
    "x-client-request-id": {"description": "The x-request-id that came with the request.", "schema": _ID},
}


@dataclass(frozen=True, slots=True)
class OfMethod:
    """What the operations of a method have besides: headers that they read, headers of their answers."""

    parameters: Sequence[Mapping[str, Any]] = ()
    fails: Sequence[type[GemlineError]] = ()
    headers: Mapping[str, Schema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Front:
    """What the operations of an app have in common, but those at `open_paths`."""

    models: Sequence[type[BaseModel]]  # every body and every answer
    key_name: str
    key_description: str
    fails: Sequence[type[GemlineError]]  # what whoever has to show a key may be told
    headers: Mapping[str, Schema]  # of every answer
    path_parameters: Mapping[str, Schema]
    methods: Mapping[str, "OfMethod"]
    open_paths: frozenset[str] = field(default_factory=frozenset)


def complete_document(app: FastAPI, front: Front) -> None:
    """Write it all into the document that FastAPI makes and keeps. Raises KeyError for a route that says nothing."""
    document = app.openapi()
    components = document.setdefault("components", {})
    _, made = models_json_schema([(model, "validation") for model in front.models], ref_template=REF)
    components["schemas"] = made["$defs"]
    headers: dict[str, Schema] = dict(front.headers)
    for of_method in front.methods.values():
        headers |= of_method.headers
    components["headers"] = {name: {"schema": {"type": "string"}, **said} for name, said in headers.items()} | _IDS
    scheme = {"type": "http", "scheme": "bearer", "description": front.key_description}
    components["securitySchemes"] = {front.key_name: scheme}
    document["security"] = [{front.key_name: []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, front, method, is_open=path in front.open_paths)


def _complete(operation: dict[str, Any], front: Front, method: str, *, is_open: bool) -> None:
    given = operation.pop(GIVES)
    parameters = [_with_facts(parameter, front) for parameter in operation.get("parameters", ())]
    reads = "requestBody" in operation or any(parameter["in"] == "query" for parameter in parameters)
    errors = {*_EVERYWHERE, *(BY_CODE[code] for code in given["fails"]), *((InvalidRequest,) if reads else ())}
    headers = dict(_IDS)
    if is_open:
        operation["security"] = []
    else:
        of_method = front.methods.get(method, OfMethod())
        parameters += [dict(parameter) for parameter in of_method.parameters]
        errors |= {*front.fails, *of_method.fails}
        headers |= {**front.headers, **of_method.headers}
    operation["parameters"] = [*parameters, _CLIENT_ID]
    operation["responses"] = {str(given["status"]): _good(given), **failures(errors)}
    for response in operation["responses"].values():
        response["headers"] = _referred(headers) | response["headers"]
        if method == "head":
            response.pop("content", None)


def _good(given: Mapping[str, Any]) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in given["headers"].items()}
    return {"description": "As asked.", "headers": headers, "content": given["content"]}


def _with_facts(parameter: Mapping[str, Any], front: Front) -> dict[str, Any]:
    if parameter["in"] != "path":
        return dict(parameter)
    return {**parameter, "schema": dict(front.path_parameters[parameter["name"]])}


def _referred(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


_CLIENT_ID = {
    "name": "x-request-id",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The client's own label: up to 128 printable ASCII characters come back as x-client-request-id.",
}
