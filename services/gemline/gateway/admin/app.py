"""Puts the admin API together: its layers from the outside in, then its routes."""

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import gemline
from gemline.cluster.operations import Operations
from gemline.errors import ConfigurationError, InvalidRequest
from gemline.gateway.admin.audit import audit_router
from gemline.gateway.admin.credential import AdminCheck
from gemline.gateway.admin.docs import ADMIN
from gemline.gateway.admin.keys import keys_router
from gemline.gateway.admin.prefixes import prefixes_router
from gemline.gateway.admin.projects import projects_router
from gemline.gateway.admin.tenants import tenants_router
from gemline.gateway.admin.usage import usage_router
from gemline.gateway.http.boundary import Boundary
from gemline.gateway.http.document import complete_document
from gemline.gateway.http.documents import documents_router
from gemline.gateway.http.errors import error_response, on_http_exception
from gemline.gateway.http.limits import BodyLimit
from gemline.gateway.settings import GatewaySettings

_ROUTERS = (tenants_router, projects_router, keys_router, usage_router, audit_router, prefixes_router)


def create_admin_app(operations: Operations, settings: GatewaySettings) -> FastAPI:
    """The ASGI application. Every path is closed without the admin key, its documentation included."""
    app = FastAPI(
        title="gemline admin",
        summary="Tenants, projects, keys, limits, usage and the audit of a gemline platform.",
        version=gemline.__version__,
        openapi_url=None,  # documents_router has it, and the page
        redirect_slashes=False,
        middleware=[
            Middleware(Boundary),
            Middleware(AdminCheck, settings.admin_key),
            Middleware(BodyLimit, settings.body_limit_bytes),
        ],
        exception_handlers={HTTPException: on_http_exception, ConfigurationError: _on_wrong_value},
    )
    for router in _ROUTERS:
        app.include_router(router(operations), prefix="/admin/v1")
    app.include_router(documents_router(app), prefix="/admin/v1")
    complete_document(app, ADMIN)
    return app


async def _on_wrong_value(request: Request, error: Exception) -> Response:
    """A record says what it cannot hold as it would say it of a file at start; here a client sent it."""
    message = error.message if isinstance(error, ConfigurationError) else str(error)
    return error_response(InvalidRequest(message, param=getattr(error, "param", None)))
