import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gemline.rpc.health import Health
from gemline.rpc.options import open_channel, server_options

SERVICE = "gemline.internal.v1.Decode"
Status = health_pb2.HealthCheckResponse.ServingStatus


class Served:
    """A server with health alone, and what a client of it sees."""

    def __init__(self, health: Health, channel: grpc.aio.Channel) -> None:
        self.health = health
        self.channel = channel
        self.stub: Any = health_pb2_grpc.HealthStub(channel)

    async def check(self, service: str = "") -> str:
        answer = await self.stub.Check(health_pb2.HealthCheckRequest(service=service))
        return Status.Name(answer.status)

    def watch(self, service: str = "") -> Any:
        return self.stub.Watch(health_pb2.HealthCheckRequest(service=service))


async def next_of(updates: Any) -> str:
    async with asyncio.timeout(5):
        return Status.Name((await updates.read()).status)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    server = grpc.aio.server(options=server_options())
    health = Health(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield Served(health, channel)
    await server.stop(None)


async def test_a_server_is_not_serving_until_it_says_so(served: Served) -> None:
    assert await served.check() == "NOT_SERVING"
    await served.health.set_serving(True)
    assert await served.check() == "SERVING"


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_every_watcher_hears_every_change(served: Served, service: str) -> None:
    leaving, staying = served.watch(service), served.watch(service)
    assert [await next_of(leaving), await next_of(staying)] == ["NOT_SERVING", "NOT_SERVING"]
    await served.health.set_serving(True)
    assert [await next_of(leaving), await next_of(staying)] == ["SERVING", "SERVING"]
    leaving.cancel()
    await asyncio.sleep(0.05)
    await served.health.set_serving(False)
    assert await next_of(staying) == "NOT_SERVING"


async def test_a_service_that_is_not_here_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.check("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert await next_of(served.watch("nobody")) == "SERVICE_UNKNOWN"


async def test_reflection_names_the_services(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)  # type: ignore[arg-type]
    calls = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    (answer,) = [answer async for answer in calls]
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}
