"""The public gRPC service of sessions as any gRPC client sees it, over a real gateway and real workers."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.eventually import eventually
from support.in_process import MODEL, InProcess

from gemline.gateway.grpc_server import SESSIONS, PublicServer
from gemline.v1 import inference_pb2, sessions_pb2
from gemline.v1 import sessions_pb2 as pb
from gemline.v1.sessions_pb2_grpc import SessionsStub

METHODS: list[MethodDescriptor] = list(pb.DESCRIPTOR.services_by_name["Sessions"].methods)
NOBODYS = "ses_" + "0" * 32


@pytest.fixture
async def channel(platform: InProcess) -> AsyncIterator[grpc.aio.Channel]:
    server = PublicServer(platform.gateway, platform.settings)
    await server.start()
    await server.set_serving(True)
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel
    await server.stop()


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return SessionsStub(channel)


@pytest.fixture
def key(platform: InProcess) -> Any:
    return (("authorization", f"Bearer {platform.api_key}"),)


def turn(session_id: str, text: str = "Hello", **sampling: Any) -> pb.ChatSessionRequest:
    return pb.ChatSessionRequest(
        session_id=session_id,
        messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content=text)],
        sampling=inference_pb2.SamplingOptions(**({"temperature": 0.0, "max_tokens": 6} | sampling)),
    )


async def call(stub: Any, method: MethodDescriptor, session_id: str, metadata: Any) -> Any:
    request = getattr(sessions_pb2, method.input_type.name)()
    if hasattr(request, "session_id"):
        request.session_id = session_id
    if method.name == "Chat":
        request = turn(session_id)
    if method.server_streaming:
        return [piece async for piece in getattr(stub, method.name)(request, metadata=metadata)]
    return await getattr(stub, method.name)(request, metadata=metadata)


def told(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    return error.code(), str(dict(error.trailing_metadata() or ())["gemline-code"])


async def test_a_session_is_made_talked_in_listed_forked_and_deleted(stub: Any, key: Any) -> None:
    made = (
        await stub.Create(pb.CreateSessionRequest(model=MODEL, ttl_s=60, metadata={"topic": "birds"}), metadata=key)
    ).session
    assert (made.model, made.num_turns, made.num_tokens, made.ttl_s) == (MODEL, 0, 0, 60)
    assert (dict(made.metadata), made.owner_present) == ({"topic": "birds"}, False)
    assert made.expires_at.seconds - made.created_at.seconds in (59, 60, 61)
    pieces = [piece async for piece in stub.Chat(turn(made.id), metadata=key)]
    assert [piece.finish_reason for piece in pieces[:-1]] == [0] * (len(pieces) - 1)
    assert pieces[-1].usage.completion_tokens == 6
    assert len({piece.request_id for piece in pieces}) == 1
    found = (await stub.Get(pb.GetSessionRequest(session_id=made.id), metadata=key)).session
    assert (found.num_turns, found.owner_present) == (1, True)
    assert found.num_tokens == pieces[-1].usage.prompt_tokens + 7
    fork = (await stub.Fork(pb.ForkSessionRequest(session_id=made.id, ttl_s=30), metadata=key)).session
    assert (fork.num_turns, fork.num_tokens, fork.ttl_s, dict(fork.metadata)) == (
        1,
        found.num_tokens,
        30,
        {"topic": "birds"},
    )
    first = await stub.List(pb.ListSessionsRequest(limit=1), metadata=key)
    second = await stub.List(pb.ListSessionsRequest(limit=1, after=first.next), metadata=key)
    assert [session.id for page in (first, second) for session in page.sessions] == [fork.id, made.id]
    assert second.next == ""
    await stub.Delete(pb.DeleteSessionRequest(session_id=made.id), metadata=key)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Get(pb.GetSessionRequest(session_id=made.id), metadata=key)
    assert told(caught.value) == (grpc.StatusCode.NOT_FOUND, "session_not_found")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer gk_1_wrong"),)])
async def test_no_method_is_open_without_a_key(stub: Any, method: MethodDescriptor, metadata: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stub, method, NOBODYS, metadata)
    assert told(caught.value) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")


async def test_no_method_shows_one_tenants_sessions_to_another(stub: Any, key: Any, platform: InProcess) -> None:
    other = (("authorization", f"Bearer {await platform.key_of('globex')}"), ("x-tenant", "acme"))
    made = (await stub.Create(pb.CreateSessionRequest(model=MODEL), metadata=key)).session
    for method in METHODS:
        if method.name == "Create":
            continue
        if method.name == "List":
            assert (await call(stub, method, made.id, other)).sessions == []
            continue
        messages = []
        for session_id in (made.id, NOBODYS):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(stub, method, session_id, other)
            assert told(caught.value) == (grpc.StatusCode.NOT_FOUND, "session_not_found")
            messages.append((caught.value.details() or "").replace(session_id, ""))
        assert messages[0] == messages[1]
    assert (await stub.Get(pb.GetSessionRequest(session_id=made.id), metadata=key)).session.num_turns == 0


async def test_a_second_turn_at_once_is_aborted_and_a_canceled_one_frees_session_and_worker(
    stub: Any, key: Any, platform: InProcess
) -> None:
    made = (await stub.Create(pb.CreateSessionRequest(model=MODEL), metadata=key)).session
    running = stub.Chat(turn(made.id, max_tokens=200, ignore_eos=True), metadata=key)
    await running.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [piece async for piece in stub.Chat(turn(made.id), metadata=key)]
    assert told(caught.value) == (grpc.StatusCode.ABORTED, "conflict")
    running.cancel()
    await eventually(lambda: sum(platform.decode_worker.load()) == 0, timeout_s=5)
    pieces = [piece async for piece in stub.Chat(turn(made.id), metadata=key)]
    assert pieces[-1].finish_reason
    assert (await stub.Get(pb.GetSessionRequest(session_id=made.id), metadata=key)).session.num_turns == 1


@pytest.mark.parametrize(
    ("method", "request_", "param"),
    [
        ("Create", pb.CreateSessionRequest(model=MODEL, ttl_s=0), "ttl_s"),
        ("Create", pb.CreateSessionRequest(model=MODEL, metadata={"": "x"}), "metadata"),
        ("List", pb.ListSessionsRequest(limit=0), "limit"),
        ("List", pb.ListSessionsRequest(after="x"), "after"),
    ],
)
async def test_a_bad_request_gets_its_field(stub: Any, key: Any, method: str, request_: Any, param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_, metadata=key)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata() or ())["gemline-param"] == param


async def test_a_turn_that_cannot_be_taken_gets_its_field_and_its_numbers(stub: Any, key: Any) -> None:
    made = (await stub.Create(pb.CreateSessionRequest(model=MODEL), metadata=key)).session
    wrong = turn(made.id)
    wrong.messages[0].role = inference_pb2.ROLE_ASSISTANT
    for request, message in ((turn(made.id, "word " * 600), "a context of 256 tokens"), (wrong, "must stand there")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [piece async for piece in stub.Chat(request, metadata=key)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(caught.value.trailing_metadata() or ())["gemline-param"] == "messages"
        assert message in (caught.value.details() or "")


async def test_health_and_reflection_know_the_service(channel: grpc.aio.Channel, key: Any) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    status = await health.Check(health_pb2.HealthCheckRequest(service=SESSIONS))
    assert status.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    (response,) = [response async for response in reflection.ServerReflectionInfo(iter(asked), metadata=key)]
    assert SESSIONS in [service.name for service in response.list_services_response.service]
