"""The standard health and reflection services of a gRPC server. Knows no worker."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_OVERALL = ""
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):
    """grpc.health.v1 on one server: not serving until `set_serving(True)`, for the server and each named service.

    The servicer of grpcio-health-checking says SERVING from its first moment, and when one of two watchers of a
    service leaves, the other hears nothing more.
    """

    def __init__(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Registers both services on `server`; `services` are full names such as gemline.v1.Inference."""
        self._services = {_OVERALL, *services}
        self._serving = False
        self._changed = asyncio.Event()
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        reflection.enable_server_reflection((*services, _HEALTH, reflection.SERVICE_NAME), server)

    async def set_serving(self, serving: bool) -> None:
        """Says whether new calls are welcome; watchers hear of it at once."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._status(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and after every change, for as long as the caller listens."""
        while True:
            changed = self._changed
            yield self._status(request.service)
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        known = health_pb2.HealthCheckResponse
        if service not in self._services:
            return known(status=known.SERVICE_UNKNOWN)
        return known(status=known.SERVING if self._serving else known.NOT_SERVING)
