"""No bytes, no JSON, no name and no query, however odd, is a fault of ours: whoever sends it may have the admin key."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
from gateway.admin.conftest import ADMIN_KEY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemline.cluster.operations import operating
from gemline.gateway.admin import create_admin_app, schemas
from gemline.gateway.settings import GatewaySettings

ROUTES: tuple[tuple[str, str, type[schemas.AdminBody]], ...] = (
    ("POST", "tenants", schemas.NewTenantBody),
    ("PATCH", "tenants/{}", schemas.ChangeTenantBody),
    ("POST", "tenants/{}/projects", schemas.NewProjectBody),
    ("PATCH", "tenants/acme/projects/{}", schemas.ChangeProjectBody),
    ("POST", "tenants/{}/keys", schemas.NewKeyBody),
    ("PATCH", "keys/{}", schemas.ChangeKeyBody),
    ("POST", "keys/{}/rotate", schemas.RotateBody),
    ("PUT", "public-prefixes/{}", schemas.PrefixBody),
    ("DELETE", "public-prefixes/{}", schemas.AdminBody),
    ("DELETE", "tenants/{}", schemas.AdminBody),
)

scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from(["acme", "acme", "x"]) | st.text(min_size=1, max_size=10)
fields = st.sampled_from(sorted({name for _, _, body in ROUTES for name in body.model_fields}))
limit_names = st.sampled_from(sorted(schemas.LimitsBody.model_fields))
limits = st.dictionaries(limit_names, st.integers() | anything, max_size=3)
right = st.fixed_dictionaries(
    {},
    optional={
        "id": names,
        "label": st.text(max_size=250),
        "limits": limits,
        "models": st.lists(st.text(max_size=5), max_size=3) | st.none(),
        "weight": st.floats(0, 2),
        "expires_in_s": st.floats(-1, 1e15) | st.none(),
        "grace_s": st.floats(-1, 1e15),
        "model": names,
        "text": st.text(max_size=20),
    },
)
bodies = st.builds(lambda good, odd: {**good, **odd}, right, st.dictionaries(fields, anything, max_size=1)) | anything
queries = st.dictionaries(
    st.sampled_from(["since", "until", "limit", "after", "before", "format", "tenant"]),
    st.text(max_size=12),
    max_size=2,
)


def fitting(body: Any, schema: type[schemas.AdminBody]) -> Any:
    """Without the fields that the route would refuse unread."""
    return {name: body[name] for name in schema.model_fields if name in body} if isinstance(body, dict) else body


async def statuses(redis_url: str, name: str, body: Any, query: dict[str, str]) -> list[int]:
    async with operating(redis_url) as operations:
        app = create_admin_app(operations, GatewaySettings(admin_key=ADMIN_KEY))
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        base_url = "http://gateway/admin/v1/"
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
            path_name = quote(name, safe="", errors="replace")
            answers = [
                await client.request(method, path.format(path_name), content=json.dumps(fitting(body, schema)).encode())
                for method, path, schema in ROUTES
            ]
            asked = {key: value.encode("utf-8", "replace").decode() for key, value in query.items()}
            answers += [await client.get(path, params=asked) for path in ("usage", "usage/summary", "audit")]
            answers += [await client.get(path) for path in ("tenants", "tenants/acme/keys", "public-prefixes", "audit")]
    return [answer.status_code for answer in answers]


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(names, bodies, queries)
def test_nothing_makes_a_fault(redis_server: str, name: str, body: Any, query: dict[str, str]) -> None:
    found = asyncio.run(statuses(redis_server, name, body, query))
    assert max(found) < 500, found
