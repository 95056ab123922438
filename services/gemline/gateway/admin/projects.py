"""/admin/v1/tenants/{tenant}/projects."""

from fastapi import APIRouter, Request, Response

from gemline.cluster.access import ProjectRecord
from gemline.cluster.changes import changed
from gemline.cluster.operations import Operations
from gemline.errors import Conflict, NotFound
from gemline.gateway.admin.answers import Deleted, ProjectAnswer, ProjectList
from gemline.gateway.admin.credential import actor_of
from gemline.gateway.admin.schemas import ChangeProjectBody, NewProjectBody
from gemline.gateway.admin.views import deleted_view, list_view, project_view
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.responses import json_response

_ALL = "/tenants/{tenant_id}/projects"
_ONE = "/tenants/{tenant_id}/projects/{project_id}"
_CHANGED = (NotFound, Conflict)


def projects_router(operations: Operations) -> APIRouter:
    """Parts of a tenant, with limits of their own beneath the tenant's."""
    router = APIRouter(tags=["projects"])

    @router.get(_ALL, openapi_extra=gives(ProjectList, (NotFound,)))
    async def list_projects(request: Request, tenant_id: str) -> Response:
        """Those of a tenant, by name."""
        access = operations.access(actor_of(request))
        await access.tenant(tenant_id)
        return json_response(list_view([project_view(record) for record in await access.projects(tenant_id)]))

    @router.post(_ALL, openapi_extra=takes(NewProjectBody) | gives(ProjectAnswer, _CHANGED, status=201))
    async def create_project(request: Request, tenant_id: str) -> Response:
        """A new one, or 409."""
        fields = (await read_body(request, NewProjectBody)).given()
        wanted = changed(ProjectRecord(tenant_id, fields.pop("id")), fields)
        made = await operations.access(actor_of(request)).put_project(wanted, is_new=True)
        return json_response(project_view(made), status=201)

    @router.get(_ONE, openapi_extra=gives(ProjectAnswer, (NotFound,)))
    async def retrieve_project(request: Request, tenant_id: str, project_id: str) -> Response:
        """One of them."""
        return json_response(project_view(await operations.access(actor_of(request)).project(tenant_id, project_id)))

    @router.patch(_ONE, openapi_extra=takes(ChangeProjectBody) | gives(ProjectAnswer, _CHANGED))
    async def update_project(request: Request, tenant_id: str, project_id: str) -> Response:
        """What is given changes, everything else stays."""
        fields = (await read_body(request, ChangeProjectBody)).given()
        access = operations.access(actor_of(request))
        record = await access.amend_project(tenant_id, project_id, lambda it: changed(it, fields))
        return json_response(project_view(record))

    @router.delete(_ONE, openapi_extra=gives(Deleted, _CHANGED))
    async def delete_project(request: Request, tenant_id: str, project_id: str) -> Response:
        """With its keys. What it used stays on record."""
        await operations.access(actor_of(request)).delete_project(tenant_id, project_id)
        return json_response(deleted_view("project", project_id))

    return router
