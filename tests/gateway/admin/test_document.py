"""The admin API's OpenAPI document: complete, and true."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.openapi import (
    Operation,
    assert_fits,
    bodies_below,
    operations_of,
    references,
    resolved,
    routes_of,
)

from gemline.cluster.usage import UsageSum
from gemline.cluster.usage_export import COLUMNS
from gemline.gateway.admin.answers import UsageAnswer, UsageSumAnswer
from gemline.gateway.admin.docs import BODIES
from gemline.gateway.admin.schemas import AdminBody, LimitsBody

Document = dict[str, Any]
TENANTS, TENANT = "/admin/v1/tenants", "/admin/v1/tenants/{tenant_id}"


@pytest.fixture
async def document(admin: httpx.AsyncClient) -> Document:
    found: Document = (await admin.get("/openapi.json")).json()
    return found


def test_every_route_and_method_is_in_it_and_nothing_else(app: FastAPI) -> None:
    found = operations_of(app.openapi())
    assert found == routes_of(app)
    assert {Operation("/admin/v1/openapi.json", "get"), Operation("/admin/v1/docs", "get")} <= found
    assert Operation("/v1/chat/completions", "post") not in found


async def test_every_reference_leads_somewhere_and_every_path_needs_the_key(document: Document) -> None:
    for reference in references(document):
        assert resolved(document, reference)
    assert document["security"] == [{"admin key": []}]
    assert not [path for path, methods in document["paths"].items() for one in methods.values() if "security" in one]


async def test_every_field_that_is_read_is_in_it_and_no_other(document: Document) -> None:
    schemas = document["components"]["schemas"]
    assert set(bodies_below(AdminBody)) == {*BODIES, LimitsBody}
    for body in bodies_below(AdminBody):
        assert schemas[body.__name__]["properties"].keys() == body.model_fields.keys()
        assert schemas[body.__name__]["additionalProperties"] is False


async def test_who_acts_may_be_said_everywhere(document: Document) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "x-actor" in [one["name"] for one in operation["parameters"]], path


def test_records_of_usage_have_the_fields_that_are_exported() -> None:
    assert tuple(UsageAnswer.model_fields) == COLUMNS
    assert UsageSumAnswer.model_fields.keys() == UsageSum.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("field", "edges", "beyond"),
    [
        ("weight", (0.001, 1000), (0.0009, 1000.1)),
        ("label", ("", "x" * 200), ("x" * 201,)),
        ("models", ([], ["m" * 200] * 64, None), ([""], ["m" * 201], ["m"] * 65)),
        ("limits", ({"requests_per_min": 0}, {"token_budget": 2**50}), ({"requests_per_min": -1}, {"period": "year"})),
    ],
)
async def test_what_it_says_of_a_field_is_what_is_taken(
    admin: httpx.AsyncClient, document: Document, field: str, edges: tuple[Any, ...], beyond: tuple[Any, ...]
) -> None:
    await admin.post("/tenants", json={"id": "acme"})
    for value in edges:
        answer = await admin.patch("/tenants/acme", json={field: value})
        assert answer.status_code == 200, answer.text
        assert_fits(document, Operation(TENANT, "patch"), answer)
    for value in beyond:
        answer = await admin.patch("/tenants/acme", json={field: value})
        assert answer.status_code == 400, value
        assert_fits(document, Operation(TENANT, "patch"), answer)


async def test_answers_are_what_it_says(admin: httpx.AsyncClient, document: Document) -> None:
    async def fits(method: str, path: str, json: Any = None, **names: str) -> Any:
        url = path.format(**names).removeprefix("/admin/v1")
        answer = await admin.request(method, url, **({} if json is None else {"json": json}))
        assert_fits(document, Operation(path.partition("?")[0], method), answer)
        return answer

    acme = {"tenant_id": "acme"}
    await fits("post", TENANTS, {"id": "acme"})
    assert (await fits("post", TENANTS, {"id": "acme"})).status_code == 409
    await fits("post", f"{TENANT}/projects", {"id": "web"}, **acme)
    made = await fits("post", f"{TENANT}/keys", {"project_id": "web", "expires_in_s": 60}, **acme)
    key = {"key_id": made.json()["id"]}
    for path in (TENANTS, TENANT, f"{TENANT}/projects", f"{TENANT}/projects/{{project_id}}", f"{TENANT}/keys"):
        await fits("get", path, project_id="web", **acme)
    one_key = "/admin/v1/keys/{key_id}"
    await fits("get", one_key, **key)
    await fits("patch", one_key, {"label": "x", "expires_in_s": None}, **key)
    await fits("post", f"{one_key}/rotate", **key)
    await fits("delete", one_key, **key)
    assert (await fits("delete", one_key, **key)).status_code == 404
    prefix = "/admin/v1/public-prefixes/{name}"
    await fits("put", prefix, {"model": "m", "text": "You are kind."}, name="kind")
    await fits("get", "/admin/v1/public-prefixes")
    await fits("delete", prefix, name="kind")
    for path in ("audit", "usage", "usage?format=csv", "usage?format=jsonl", "usage?format=x", "usage/summary"):
        await fits("get", f"/admin/v1/{path}")
    await fits("delete", f"{TENANT}/projects/{{project_id}}", project_id="web", **acme)
    await fits("delete", TENANT, **acme)
    assert "DELETE /admin/v1/tenants/{tenant_id}</code>" in (await fits("get", "/admin/v1/docs")).text
