"""Deny by default, seen from outside."""

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from gateway.http.toy import ToyCore
from starlette.routing import Route

from gemline.gateway.core import bearer_key
from gemline.gateway.http import create_app
from gemline.gateway.http.keys import OPEN_PATHS
from gemline.gateway.settings import GatewaySettings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
def app() -> FastAPI:
    return create_app(ToyCore(), GatewaySettings())


def paths(app: FastAPI) -> list[str]:
    """Every path with something at it, the documentation included."""
    document = app.openapi()
    found = {route.path for route in app.routes if isinstance(route, Route | APIRoute)}
    return sorted(found | set(document["paths"]))


async def test_no_route_but_the_probes_answers_without_a_key(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        assert {"/v1/chat/completions", "/docs", "/openapi.json"} <= set(paths(app))
        for path in [*paths(app), "/", "/v1/nothing"]:
            for method in METHODS:
                answer = await client.request(method, path, content=b"{}")
                is_open = path in OPEN_PATHS and method in ("GET", "HEAD")
                assert answer.status_code == (200 if is_open else 401), (method, path)


async def test_no_spelling_of_an_open_path_opens_another(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for path in (
            "/healthz/",
            "//healthz",
            "/healthz/../v1/models",
            "/healthz/v1/models",
            "/HEALTHZ",
            "/v1?/healthz",
        ):
            assert (await client.get(path)).status_code == 401, path


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer gk_1", "gk_1"),
        ("bearer  gk_1 ", "gk_1"),
        ("Bearer", None),
        ("Bearer ", None),
        ("gk_1", None),
        ("Basic gk_1", None),
        ("\xff\xfe", None),
    ],
)
def test_a_key_is_what_follows_bearer(header: str, key: str | None) -> None:
    assert bearer_key(header) == key
