"""GET openapi.json and docs: the API's own description, for programs and for people. Behind the key, as all else."""

from fastapi import APIRouter, FastAPI, Response

from gemline.gateway.http.docs import gives
from gemline.gateway.http.page import rendered
from gemline.gateway.http.responses import json_response

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def documents_router(app: FastAPI) -> APIRouter:
    """Of that app, as its document is when they are asked for."""
    router = APIRouter(tags=["documents"])

    @router.get("/openapi.json", openapi_extra=gives(texts={"application/json": {"type": "object"}}))
    async def openapi() -> Response:
        """This document."""
        return json_response(app.openapi())

    @router.get(
        "/docs",
        openapi_extra=gives(
            texts={"text/html": {"type": "string"}}, headers={"content-security-policy": "No script, nothing loaded."}
        ),
    )
    async def docs() -> Response:
        """This document as a page that loads nothing: save it and open it in a browser."""
        page = rendered(app.openapi())
        return Response(page, media_type="text/html", headers={"content-security-policy": _POLICY})

    return router
