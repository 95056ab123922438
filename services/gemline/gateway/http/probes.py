"""GET /healthz, /readyz and /metrics: for the machinery around us, open without a key."""

from fastapi import APIRouter, Response

from gemline.errors import Unavailable
from gemline.gateway.http.interface import Core
from gemline.gateway.http.responses import json_response
from gemline.telemetry import METRICS_CONTENT_TYPE


def probes_router(core: Core) -> APIRouter:
    """Whether this process lives, whether it can answer, and its figures."""
    router = APIRouter(tags=["probes"])

    @router.get("/healthz")
    @router.head("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """200 while the process runs."""
        return json_response({"status": "ok"})

    @router.get("/readyz")
    @router.head("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        """200 while a request for at least one model could be answered, else 503."""
        if not core.ready():
            raise Unavailable("no model can be served yet: a tokenization or a decode worker is missing")
        return json_response({"status": "ready"})

    @router.get("/metrics")
    @router.head("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """This process's metrics for Prometheus."""
        return Response(core.telemetry.render_metrics(), media_type=METRICS_CONTENT_TYPE)

    return router
