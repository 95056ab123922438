"""An OpenAPI document in the hands of a test: its operations, and whether an answer is what it says."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import jsonschema
from fastapi import FastAPI

from gemline.gateway.http.bodies import Body


class Operation(NamedTuple):
    """A path and a method of it, in small letters."""

    path: str
    method: str


def operations_of(document: dict[str, Any]) -> set[Operation]:
    """All that the document has."""
    return {Operation(path, method) for path, methods in document["paths"].items() for method in methods}


def routes_of(app: Any) -> set[Operation]:
    """All that the app serves, whatever it says of itself."""
    assert isinstance(app, FastAPI)
    found: list[Any] = []
    for route in app.routes:
        found += route.effective_candidates() if hasattr(route, "effective_candidates") else [route]
    return {Operation(one.path.replace(":path}", "}"), method.lower()) for one in found for method in one.methods}


def references(part: object) -> Iterator[str]:
    """Every $ref in it."""
    if isinstance(part, list):
        for one in part:
            yield from references(one)
    elif isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for one in part.values():
            yield from references(one)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """What a reference points at; raises KeyError when there is nothing."""
    part: Any = document
    for step in reference.removeprefix("#/").split("/"):
        part = part[step]
    return part


def bodies_below(root: type[Body]) -> Iterator[type[Body]]:
    """Every class of bodies."""
    for child in root.__subclasses__():
        yield child
        yield from bodies_below(child)


def assert_fits(document: dict[str, Any], operation: Operation, answer: httpx.Response) -> None:
    """The status, the media type, the headers and the body are among those that the document has."""
    response = document["paths"][operation.path][operation.method]["responses"][str(answer.status_code)]
    for name, header in response["headers"].items():
        said = resolved(document, header["$ref"]) if "$ref" in header else header
        assert name in answer.headers or not said.get("required"), name
        if name in answer.headers:
            jsonschema.validate(answer.headers[name], said["schema"])
    by_type = {kind.partition(";")[0]: one["schema"] for kind, one in response["content"].items()}
    schema = by_type[answer.headers["content-type"].partition(";")[0]]
    if answer.headers["content-type"].startswith("text/event-stream"):
        data = schema["properties"]["data"]["anyOf"][1]["contentSchema"]
        for line in answer.text.splitlines():
            if line and line != "data: [DONE]":
                assert_is(document, data, json.loads(line.removeprefix("data: ")))
    elif answer.headers["content-type"] == "application/json":
        assert_is(document, schema, answer.json())


def assert_is(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """A value of that schema."""
    jsonschema.validate(value, {**schema, "components": document["components"]})
