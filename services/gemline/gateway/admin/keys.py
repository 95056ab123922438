"""Keys: /admin/v1/tenants/{tenant}/keys, /admin/v1/keys/{key}. The key itself is in the answer that makes it alone."""

from typing import Any

from fastapi import APIRouter, Request, Response

from gemline.cluster.access import KeyRecord
from gemline.cluster.access_store import DEFAULT_GRACE_S, AccessStore, NewKey, expiry_ms
from gemline.cluster.changes import changed
from gemline.cluster.operations import Operations
from gemline.errors import Conflict, NotFound
from gemline.gateway.admin.answers import Deleted, KeyAnswer, KeyList, NewKeyAnswer
from gemline.gateway.admin.credential import actor_of
from gemline.gateway.admin.schemas import ChangeKeyBody, NewKeyBody, RotateBody
from gemline.gateway.admin.views import deleted_view, key_view, list_view
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.parsing import parse_body, read_body
from gemline.gateway.http.responses import json_response

_CHANGED = (NotFound, Conflict)


def keys_router(operations: Operations) -> APIRouter:
    """The API keys that tenants call with."""
    router = APIRouter(tags=["keys"])
    made = gives(NewKeyAnswer, _CHANGED, status=201, headers={"cache-control": "`no-store`: it holds a secret."})

    @router.get("/tenants/{tenant_id}/keys", openapi_extra=gives(KeyList, (NotFound,)))
    async def list_keys(request: Request, tenant_id: str) -> Response:
        """Those of a tenant, by id; expired ones too, until they are revoked."""
        access = operations.access(actor_of(request))
        await access.tenant(tenant_id)
        return json_response(list_view([key_view(record) for record in await access.keys(tenant_id)]))

    @router.post("/tenants/{tenant_id}/keys", openapi_extra=takes(NewKeyBody, required=False) | made)
    async def create_key(request: Request, tenant_id: str) -> Response:
        """A new one; `key` is shown this once, for only its digest is kept."""
        access = operations.access(actor_of(request))
        fields = parse_body(await request.body() or b"{}", NewKeyBody).given()
        await access.tenant(tenant_id)
        project_id = fields.pop("project_id", None) or ""
        wanted = changed(KeyRecord(tenant_id, project_id), await _with_expiry(access, fields))
        return _shown_once(await access.create_key(wanted))

    @router.get("/keys/{key_id}", openapi_extra=gives(KeyAnswer, (NotFound,)))
    async def retrieve_key(request: Request, key_id: str) -> Response:
        """What it gives; never the key."""
        return json_response(key_view(await operations.access(actor_of(request)).key(key_id)))

    @router.patch("/keys/{key_id}", openapi_extra=takes(ChangeKeyBody) | gives(KeyAnswer, _CHANGED))
    async def update_key(request: Request, key_id: str) -> Response:
        """What is given changes, everything else stays."""
        access = operations.access(actor_of(request))
        fields = await _with_expiry(access, (await read_body(request, ChangeKeyBody)).given())
        return json_response(key_view(await access.amend_key(key_id, lambda it: changed(it, fields))))

    @router.delete("/keys/{key_id}", openapi_extra=gives(Deleted, _CHANGED))
    async def revoke_key(request: Request, key_id: str) -> Response:
        """Every gateway refuses it within seconds; what runs ends as it would."""
        await operations.access(actor_of(request)).revoke(key_id)
        return json_response(deleted_view("key", key_id))

    @router.post("/keys/{key_id}/rotate", openapi_extra=takes(RotateBody, required=False) | made)
    async def rotate_key(request: Request, key_id: str) -> Response:
        """A new key with all that the old one gives; the old one holds for `grace_s` longer, then no more."""
        access = operations.access(actor_of(request))
        body = parse_body(await request.body() or b"{}", RotateBody)
        grace_s = DEFAULT_GRACE_S if body.grace_s is None else body.grace_s
        return _shown_once(await access.rotate(key_id, grace_s, expiry_ms(await access.now_ms(), body.expires_in_s)))

    return router


async def _with_expiry(access: AccessStore, fields: dict[str, Any]) -> dict[str, Any]:
    if "expires_in_s" not in fields:
        return fields
    return fields | {"expires_ms": expiry_ms(await access.now_ms(), fields.pop("expires_in_s"))}


def _shown_once(made: NewKey) -> Response:
    return json_response({**key_view(made.record), "key": made.key}, status=201, headers={"cache-control": "no-store"})
