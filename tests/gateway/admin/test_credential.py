"""Deny by default: every route and every method, without a key and with any other."""

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from gemline.cluster.access import KeyRecord
from gemline.cluster.operations import Operations
from gemline.gateway.admin import create_admin_app
from gemline.gateway.settings import GatewaySettings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
ADMIN_KEY = "ga_sixteen_and_more"


def paths(app: FastAPI) -> list[str]:
    """Every path with something at it, the documentation included, and some with nothing."""
    document = app.openapi()
    found = {route.path for route in app.routes if isinstance(route, Route | APIRoute)} | set(document["paths"])
    assert {"/admin/v1/tenants", "/admin/v1/keys/{key_id}/rotate", "/admin/v1/openapi.json"} <= found
    return [*sorted(found), "/", "/healthz", "/metrics", "/docs", "/admin/v1/nothing"]


async def statuses(app: FastAPI, headers: list[tuple[bytes, bytes]]) -> set[int]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        return {
            (await client.request(method, path, content=b"{}")).status_code for path in paths(app) for method in METHODS
        }


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + ADMIN_KEY.encode(),
        ADMIN_KEY.encode(),
        b"Bearer " + ADMIN_KEY[:-1].encode(),
        b"Bearer " + ADMIN_KEY.encode() + b"x",
        b"Bearer " + ADMIN_KEY.upper().encode(),
        b"Bearer \xff\xfe",
    ],
)
async def test_nothing_answers_without_the_admin_key(app: FastAPI, given: bytes | None) -> None:
    assert await statuses(app, [] if given is None else [(b"authorization", given)]) <= {401, 429}


async def test_a_tenants_key_opens_nothing(app: FastAPI, operations: Operations) -> None:
    key = (await operations.access("test").create_key(KeyRecord("acme"))).key
    assert await statuses(app, [(b"authorization", f"Bearer {key}".encode())]) <= {401, 429}


async def test_without_a_credential_not_even_an_empty_key_is_right(operations: Operations) -> None:
    app = create_admin_app(operations, GatewaySettings())
    for given in (b"Bearer ", b"Bearer x", b""):
        assert await statuses(app, [(b"authorization", given)]) <= {401, 429}


async def test_a_refused_change_changes_nothing(app: FastAPI, operations: Operations) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/v1") as client:
        assert (await client.post("/tenants", json={"id": "acme"})).status_code == 401
    assert await operations.access("test").tenants() == ()
    assert await operations.audit.newest() == ()


async def test_who_acts_is_in_the_audit(admin: httpx.AsyncClient, operations: Operations) -> None:
    await admin.post("/tenants", json={"id": "a"})
    await admin.post("/tenants", json={"id": "b"}, headers={"x-actor": "ada@example.org"})
    assert [line.actor for line in await operations.audit.newest()] == ["admin:ada@example.org", "admin"]


@pytest.mark.parametrize("actor", [b"x" * 101, b"a\tb", b"\xff\x80"])
async def test_an_actor_that_cannot_stand_in_a_line_is_refused(admin: httpx.AsyncClient, actor: bytes) -> None:
    answer = await admin.request("GET", "/tenants", headers={b"x-actor": actor})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-actor")
