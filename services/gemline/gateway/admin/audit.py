"""/admin/v1/audit: who changed what."""

from fastapi import APIRouter, Request, Response

from gemline.cluster.audit import MAX_LINES
from gemline.cluster.operations import Operations
from gemline.gateway.admin.answers import AuditPage
from gemline.gateway.admin.queries import described, number, read_query
from gemline.gateway.admin.views import audit_view, list_view
from gemline.gateway.http.docs import asks, gives
from gemline.gateway.http.responses import json_response

_DEFAULT_LINES = 100
_PAGING = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LINES, "default": _DEFAULT_LINES},
    "before": described("`next` of the page before"),
}


def audit_router(operations: Operations) -> APIRouter:
    """A line for each change, with what was and what is; no secret and no prompt."""
    router = APIRouter(tags=["audit"])

    @router.get("/audit", openapi_extra=asks(**_PAGING) | gives(AuditPage))
    async def list_audit(request: Request) -> Response:
        """The newest first."""
        query = read_query(request, *_PAGING)
        limit = number(query, "limit", _DEFAULT_LINES)
        lines = await operations.audit.newest(limit, query.get("before", ""))
        return json_response(list_view(list(map(audit_view, lines)), lines[-1].line_id if len(lines) == limit else ""))

    return router
