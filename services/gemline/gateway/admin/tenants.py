"""/admin/v1/tenants."""

from fastapi import APIRouter, Request, Response

from gemline.cluster.access import TenantRecord
from gemline.cluster.changes import changed
from gemline.cluster.operations import Operations
from gemline.errors import Conflict, NotFound
from gemline.gateway.admin.answers import Deleted, TenantAnswer, TenantList
from gemline.gateway.admin.credential import actor_of
from gemline.gateway.admin.schemas import ChangeTenantBody, NewTenantBody
from gemline.gateway.admin.views import deleted_view, list_view, tenant_view
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.responses import json_response

_CHANGED = (NotFound, Conflict)


def tenants_router(operations: Operations) -> APIRouter:
    """Whom the platform serves."""
    router = APIRouter(tags=["tenants"])

    @router.get("/tenants", openapi_extra=gives(TenantList))
    async def list_tenants(request: Request) -> Response:
        """All, by name."""
        tenants = await operations.access(actor_of(request)).tenants()
        return json_response(list_view([tenant_view(record) for record in tenants]))

    @router.post("/tenants", openapi_extra=takes(NewTenantBody) | gives(TenantAnswer, (Conflict,), status=201))
    async def create_tenant(request: Request) -> Response:
        """A new one, or 409."""
        fields = (await read_body(request, NewTenantBody)).given()
        wanted = changed(TenantRecord(fields.pop("id")), fields)
        made = await operations.access(actor_of(request)).put_tenant(wanted, is_new=True)
        return json_response(tenant_view(made), status=201)

    @router.get("/tenants/{tenant_id}", openapi_extra=gives(TenantAnswer, (NotFound,)))
    async def retrieve_tenant(request: Request, tenant_id: str) -> Response:
        """One of them."""
        return json_response(tenant_view(await operations.access(actor_of(request)).tenant(tenant_id)))

    @router.patch("/tenants/{tenant_id}", openapi_extra=takes(ChangeTenantBody) | gives(TenantAnswer, _CHANGED))
    async def update_tenant(request: Request, tenant_id: str) -> Response:
        """What is given changes, everything else stays; every gateway knows within seconds."""
        fields = (await read_body(request, ChangeTenantBody)).given()
        access = operations.access(actor_of(request))
        return json_response(tenant_view(await access.amend_tenant(tenant_id, lambda it: changed(it, fields))))

    @router.delete("/tenants/{tenant_id}", openapi_extra=gives(Deleted, _CHANGED))
    async def delete_tenant(request: Request, tenant_id: str) -> Response:
        """With its projects and keys. What it used stays on record."""
        await operations.access(actor_of(request)).delete_tenant(tenant_id)
        return json_response(deleted_view("tenant", tenant_id))

    return router
