"""The standard health and reflection services of a gRPC server. Knows no worker."""

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_OVERALL = ""


class Health:
    """grpc.health.v1 on one server: not serving until `set_serving(True)`, for the server and each named service."""

    def __init__(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Registers both services on `server`; `services` are full names such as gemline.v1.Inference."""
        self._services = (_OVERALL, *services)
        self._servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def set_serving(self, serving: bool) -> None:
        """Says whether new calls are welcome; watchers hear of it at once."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, status)
