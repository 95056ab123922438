"""/admin/v1/public-prefixes: texts whose KV blocks all tenants may share."""

from fastapi import APIRouter, Request, Response

from gemline.cluster.operations import Operations
from gemline.cluster.public_prefixes import PublicPrefix
from gemline.errors import NotFound
from gemline.gateway.admin.answers import Deleted, PrefixAnswer, PrefixList
from gemline.gateway.admin.credential import actor_of
from gemline.gateway.admin.schemas import PrefixBody
from gemline.gateway.admin.views import deleted_view, list_view, prefix_view
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.responses import json_response


def prefixes_router(operations: Operations) -> APIRouter:
    """Whoever can time answers can tell that such a text is cached: it must hold no secret."""
    router = APIRouter(tags=["public prefixes"])

    @router.get("/public-prefixes", openapi_extra=gives(PrefixList))
    async def list_prefixes(request: Request) -> Response:
        """All, by name, without their texts."""
        return json_response(list_view([prefix_view(it) for it in await operations.prefixes(actor_of(request)).all()]))

    @router.put("/public-prefixes/{name}", openapi_extra=takes(PrefixBody) | gives(PrefixAnswer))
    async def put_prefix(request: Request, name: str) -> Response:
        """Declare one, in place of the one of that name if there is one."""
        body = await read_body(request, PrefixBody)
        prefix = PublicPrefix(name, body.model, body.text, body.is_raw)
        await operations.prefixes(actor_of(request)).put(prefix)
        return json_response(prefix_view(prefix))

    @router.delete("/public-prefixes/{name}", openapi_extra=gives(Deleted, (NotFound,)))
    async def delete_prefix(request: Request, name: str) -> Response:
        """Share it no longer."""
        if not await operations.prefixes(actor_of(request)).remove(name):
            raise NotFound(f"there is no public prefix {name!r}")
        return json_response(deleted_view("public_prefix", name))

    return router
