"""A server with the certificate of our processes, as a worker's host makes it, and a call of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from gemline.host import bind_server
from gemline.rpc.health import Health
from gemline.rpc.internal_tls import InternalTls, check_caller
from gemline.rpc.options import server_options
from gemline.rpc.status import ErrorInterceptor

SERVING = HealthCheckResponse.SERVING


@asynccontextmanager
async def served(tls: InternalTls) -> AsyncIterator[tuple[str, Health]]:
    """A server as a worker's host makes it; its address, and the service that it has."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor(admit=check_caller)], options=server_options())
    health = Health(server, [])
    port = bind_server(server, "127.0.0.1", 0, tls.server_credentials())
    await server.start()
    await health.set_serving(True)
    try:
        yield f"127.0.0.1:{port}", health
    finally:
        await server.stop(None)


async def ask(channel: grpc.aio.Channel) -> Any:
    """The status it serves; the channel is closed."""
    async with channel:
        stub: Any = HealthStub(channel)
        return (await stub.Check(HealthCheckRequest(), timeout=5)).status
