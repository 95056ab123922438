"""GET /healthz, /readyz and /metrics: for the machinery around us, open without a key."""

from fastapi import APIRouter, Response

from gemline.errors import Unavailable
from gemline.gateway.http.answers import StatusAnswer
from gemline.gateway.http.docs import gives
from gemline.gateway.http.interface import Core
from gemline.gateway.http.responses import json_response
from gemline.telemetry import METRICS_CONTENT_TYPE


def probes_router(core: Core) -> APIRouter:
    """Whether this process lives, whether it can answer, and its figures."""
    router = APIRouter(tags=["probes"])
    lives, is_ready = gives(StatusAnswer), gives(StatusAnswer, (Unavailable,))
    figures = gives(texts={METRICS_CONTENT_TYPE: {"type": "string"}})

    @router.get("/healthz", openapi_extra=lives)
    @router.head("/healthz", openapi_extra=lives)
    async def healthz() -> Response:
        """200 while the process runs."""
        return json_response({"status": "ok"})

    @router.get("/readyz", openapi_extra=is_ready)
    @router.head("/readyz", openapi_extra=is_ready)
    async def readyz() -> Response:
        """200 while a request for at least one model could be answered, else 503."""
        if not core.ready():
            raise Unavailable("no model can be served yet: a tokenization or a decode worker is missing")
        return json_response({"status": "ready"})

    @router.get("/metrics", openapi_extra=figures)
    @router.head("/metrics", openapi_extra=figures)
    async def metrics() -> Response:
        """This process's metrics for Prometheus."""
        return Response(core.telemetry.render_metrics(), media_type=METRICS_CONTENT_TYPE)

    return router
