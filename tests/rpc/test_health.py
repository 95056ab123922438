import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gemline.rpc.health import Health
from gemline.rpc.options import open_channel, server_options

SERVICE = "gemline.internal.v1.Decode"


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_a_server_says_whether_it_serves(service: str) -> None:
    server = grpc.aio.server(options=server_options())
    health = Health(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        updates = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        told = []
        for serving in (True, False, True):
            await health.set_serving(serving)
            while not told or told[-1] != (1 if serving else 2):
                update = await updates.read()
                assert isinstance(update, health_pb2.HealthCheckResponse)
                told.append(update.status)
    await server.stop(None)


async def test_a_server_is_not_serving_until_it_says_so() -> None:
    server = grpc.aio.server(options=server_options())
    Health(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.stop(None)


async def test_reflection_names_the_services() -> None:
    server = grpc.aio.server(options=server_options())
    Health(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        calls = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        (answer,) = [answer async for answer in calls]
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}
    await server.stop(None)
