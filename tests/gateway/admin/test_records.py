"""Tenants, projects and keys over the admin API, and what a gateway makes of them."""

import httpx
import pytest

from gemline.cluster.connection import connect
from gemline.cluster.keys import ApiKeys
from gemline.cluster.operations import Operations

NO_LIMITS = {
    "requests_per_min": None,
    "tokens_per_min": None,
    "concurrent_requests": None,
    "token_budget": None,
    "kv_byte_seconds": None,
    "period": "month",
}


async def make(admin: httpx.AsyncClient, path: str, **fields: object) -> dict[str, object]:
    answer = await admin.post(path, json=fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, object] = answer.json()
    return made


async def error(answer: httpx.Response) -> tuple[int, str, str, str | None]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["message"], body["param"]


async def test_a_tenant_lives(admin: httpx.AsyncClient) -> None:
    made = await make(admin, "/tenants", id="acme", limits={"requests_per_min": 60}, weight=2, models=["gemma"])
    assert made == {
        "id": "acme",
        "object": "tenant",
        "label": "",
        "limits": NO_LIMITS | {"requests_per_min": 60},
        "models": ["gemma"],
        "weight": 2,
        "band": "default",
        "is_disabled": False,
        "created_at": made["created_at"],
    }
    assert (await admin.get("/tenants")).json() == {"object": "list", "data": [made]}
    changed = await admin.patch(
        "/tenants/acme", json={"limits": {"token_budget": 1000, "period": "day"}, "models": None, "is_disabled": True}
    )
    expected = made | {"models": None, "is_disabled": True}
    expected |= {"limits": NO_LIMITS | {"requests_per_min": 60, "token_budget": 1000, "period": "day"}}
    assert changed.json() == expected == (await admin.get("/tenants/acme")).json()
    gone = await admin.patch("/tenants/acme", json={"limits": {"requests_per_min": None}})
    assert gone.json()["limits"]["requests_per_min"] is None
    deleted = await admin.delete("/tenants/acme")
    assert deleted.json() == {"id": "acme", "object": "tenant.deleted", "deleted": True}
    assert (await admin.get("/tenants/acme")).status_code == 404


async def test_a_project_lives_under_its_tenant(admin: httpx.AsyncClient) -> None:
    await make(admin, "/tenants", id="acme")
    made = await make(admin, "/tenants/acme/projects", id="web", label="the shop")
    assert (made["id"], made["tenant_id"], made["label"], made["limits"]) == ("web", "acme", "the shop", NO_LIMITS)
    path = "/tenants/acme/projects/web"
    assert (await admin.patch(path, json={"limits": {"concurrent_requests": 3}})).json()["limits"][
        "concurrent_requests"
    ] == 3
    assert [it["id"] for it in (await admin.get("/tenants/acme/projects")).json()["data"]] == ["web"]
    assert (await admin.delete(path)).status_code == 200
    assert (await admin.get(path)).status_code == 404
    assert (await admin.get("/tenants/other/projects")).status_code == 404


async def test_a_key_is_shown_once_works_and_is_rotated_and_revoked(
    admin: httpx.AsyncClient, operations: Operations, redis_url: str
) -> None:
    await make(admin, "/tenants", id="acme")
    await make(admin, "/tenants/acme/projects", id="web")
    limits = {"requests_per_min": 5}
    answer = await admin.post("/tenants/acme/keys", json={"project_id": "web", "limits": limits, "expires_in_s": 3600})
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    made = answer.json()
    key = made.pop("key")
    assert made["id"] in key
    assert 3590 < made["expires_at"] - made["created_at"] <= 3601
    listed = await admin.get("/tenants/acme/keys")
    assert listed.json()["data"] == [made] == [(await admin.get(f"/keys/{made['id']}")).json()]
    redis = connect(redis_url)
    access = await ApiKeys(redis, None).access_of(key)
    assert access is not None and access.key is not None and access.project is not None
    assert access.key.limits.requests_per_min == 5
    assert (await admin.patch(f"/keys/{made['id']}", json={"expires_in_s": None})).json()["expires_at"] is None
    rotated = (await admin.post(f"/keys/{made['id']}/rotate", json={"grace_s": 60, "expires_in_s": 7200})).json()
    assert (rotated["limits"]["requests_per_min"], rotated["project_id"]) == (5, "web")
    assert rotated["expires_at"] - rotated["created_at"] in range(7190, 7203)
    old = (await admin.get(f"/keys/{made['id']}")).json()
    assert old["replaced_by"] == rotated["id"]
    assert (await admin.post(f"/keys/{made['id']}/rotate")).status_code == 409
    assert (await admin.delete(f"/keys/{made['id']}")).json()["object"] == "key.deleted"
    keys = ApiKeys(redis, None)
    assert await keys.access_of(key) is None
    assert await keys.access_of(rotated["key"]) is not None
    await redis.aclose()
    seen = (await admin.get("/audit")).text + listed.text
    for secret in (key, rotated["key"]):
        assert secret.rpartition("_")[2] not in seen
    assert "digest" not in seen


async def test_a_key_needs_its_tenant_and_its_project(admin: httpx.AsyncClient, operations: Operations) -> None:
    assert (await admin.post("/tenants/acme/keys")).status_code == 404
    assert await operations.access("test").tenants() == ()
    await make(admin, "/tenants", id="acme")
    assert (await admin.post("/tenants/acme/keys", json={"project_id": "web"})).status_code == 404
    assert (await admin.post("/tenants/acme/keys")).status_code == 201


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"id": "a b"}, "tenant", "1 to 64 letters"),
        ({"id": "a", "limits": {"requests_per_min": -1}}, "requests_per_min", "from 0 to 1125899906842624, is -1"),
        ({"id": "a", "limits": {"tokens_per_min": 2**51}}, "tokens_per_min", f"is {2**51}"),
        ({"id": "a", "limits": {"tokens_per_min": "5"}}, "limits.tokens_per_min", '"5"'),
        ({"id": "a", "limits": {"tokens_per_min": True}}, "limits.tokens_per_min", "true"),
        ({"id": "a", "limits": {"period": "year"}}, "limits.period", "'day' or 'month'"),
        ({"id": "a", "limits": None}, "limits", "object"),
        ({"id": "a", "weight": 1001}, "weight", "from 0.001 to 1000, is 1001"),
        ({"id": "a", "label": "x" * 201}, "label", "201 characters, over 200"),
        ({"id": "a", "models": ["m"] * 65}, "models", "65, over 64"),
        ({"id": "a", "models": [""]}, "models", "0 characters"),
        ({"id": "a", "band": "urgent"}, "band", "'priority'"),
        ({"id": "a", "tokens_per_min": 5}, "tokens_per_min", "tokens_per_min is no field here"),
        ({"id": "a", "limits": {"tokens_per_minute": 5}}, "limits.tokens_per_minute", "is no field here"),
        ({}, "id", "is required"),
    ],
)
async def test_what_cannot_be_is_refused_by_name_and_nothing_is_made(
    admin: httpx.AsyncClient, operations: Operations, body: dict[str, object], param: str, words: str
) -> None:
    status, code, message, named = await error(await admin.post("/tenants", json=body))
    assert (status, code, named) == (400, "invalid_request", param)
    assert words in message
    assert await operations.access("test").tenants() == ()


async def test_a_change_is_refused_as_a_whole(admin: httpx.AsyncClient, operations: Operations) -> None:
    await make(admin, "/tenants", id="acme")
    answer = await admin.patch("/tenants/acme", json={"label": "new", "weight": 0})
    assert answer.status_code == 400
    assert (await operations.access("test").tenant("acme")).label == ""


async def test_errors_are_those_of_the_public_port(admin: httpx.AsyncClient) -> None:
    await make(admin, "/tenants", id="acme")
    status, code, message, _ = await error(await admin.post("/tenants", json={"id": "acme"}))
    assert (status, code, "'acme' is there already" in message) == (409, "conflict", True)
    assert (await error(await admin.patch("/tenants/none", json={})))[:2] == (404, "resource_not_found")
    assert (await error(await admin.delete("/keys/none")))[:2] == (404, "resource_not_found")
    assert (await error(await admin.get("/nothing")))[:2] == (404, "not_found")
    assert (await error(await admin.put("/tenants")))[:2] == (405, "method_not_allowed")
    assert (await error(await admin.post("/tenants", content=b"{")))[:2] == (400, "invalid_request")
    too_large = await admin.post("/tenants", content=b" " * (5 * 2**20))
    assert (await error(too_large))[:2] == (413, "request_too_large")
    for answer in (too_large, await admin.get("/tenants")):
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("grace_s", [-1, 1e9])
async def test_a_grace_that_is_no_time_is_refused_before_a_key_is_made(
    admin: httpx.AsyncClient, operations: Operations, grace_s: float
) -> None:
    await make(admin, "/tenants", id="acme")
    made = await make(admin, "/tenants/acme/keys")
    answer = await admin.post(f"/keys/{made['id']}/rotate", json={"grace_s": grace_s})
    assert (await error(answer))[3] == "grace_s"
    assert len(await operations.access("test").keys("acme")) == 1


async def test_an_expiry_that_is_no_time_is_refused(admin: httpx.AsyncClient) -> None:
    await make(admin, "/tenants", id="acme")
    for value in (0, -5, 1e12):
        answer = await admin.post("/tenants/acme/keys", json={"expires_in_s": value})
        assert (await error(answer))[3] == "expires_in_s"


async def test_public_prefixes_are_declared_and_taken_away(admin: httpx.AsyncClient) -> None:
    text = "Be kind to every customer. " * 10
    put = await admin.put("/public-prefixes/shop", json={"model": "gemma", "text": text})
    expected = {"id": "shop", "object": "public_prefix", "model": "gemma", "is_raw": False, "num_characters": len(text)}
    assert put.json() == expected == (await admin.get("/public-prefixes")).json()["data"][0]
    assert (await error(await admin.put("/public-prefixes/x", json={"model": "m", "text": " "})))[3] == "text"
    assert (await admin.delete("/public-prefixes/shop")).json()["deleted"]
    assert (await admin.delete("/public-prefixes/shop")).status_code == 404
    audit = await admin.get("/audit")
    assert [line["action"] for line in audit.json()["data"]] == ["prefix.remove", "prefix.put"]
    assert "kind" not in audit.text


async def test_the_audit_has_what_was_and_what_is(admin: httpx.AsyncClient) -> None:
    await make(admin, "/tenants", id="acme")
    await admin.patch("/tenants/acme", json={"weight": 3})
    page = (await admin.get("/audit", params={"limit": 1})).json()
    line = page["data"][0]
    assert (line["action"], line["before"]["weight"], line["after"]["weight"]) == ("tenant.update", 1, 3)
    following = (await admin.get("/audit", params={"limit": 5, "before": page["next"]})).json()
    assert ([it["before"] for it in following["data"]], following["has_more"]) == ([None], False)
    for query in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"before": "x"}, {"since": "1"}):
        assert (await admin.get("/audit", params=query)).status_code == 400


async def test_while_redis_is_away_it_says_so(operations: Operations, admin: httpx.AsyncClient) -> None:
    operations._redis.connection_pool.connection_kwargs["port"] = 1
    await operations._redis.connection_pool.disconnect()
    for path in ("/tenants", "/usage", "/usage?format=csv", "/usage/summary", "/audit", "/public-prefixes"):
        answer = await admin.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        assert answer.json()["error"]["code"] == "unavailable"
