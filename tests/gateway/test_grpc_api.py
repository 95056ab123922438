"""The public gRPC service as any gRPC client sees it, over a real gateway and real workers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.eventually import eventually
from support.in_process import MODEL, InProcess

from gemline.gateway.grpc_server import SERVICE, PublicServer
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

GREEDY = {"temperature": 0.0, "ignore_eos": True}
METHODS: list[MethodDescriptor] = list(pb.DESCRIPTOR.services_by_name["Inference"].methods)


@pytest.fixture
async def server(platform: InProcess) -> AsyncIterator[PublicServer]:
    server = PublicServer(platform.gateway, platform.settings)
    await server.start()
    await server.set_serving(True)
    yield server
    await server.stop()


@pytest.fixture
async def channel(server: PublicServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return InferenceStub(channel)


@pytest.fixture
def key(platform: InProcess) -> Any:
    return (("authorization", f"Bearer {platform.api_key}"),)


def sampling(**given: Any) -> pb.SamplingOptions:
    return pb.SamplingOptions(**(GREEDY | given))


def hello(text: str = "Hello there") -> list[pb.Message]:
    return [pb.Message(role=pb.ROLE_USER, content=text)]


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata())


async def test_a_prompt_is_continued_whole_and_in_pieces_alike(stub: Any, key: Any) -> None:
    whole = await stub.Generate(
        pb.GenerateRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=16)), metadata=key
    )
    request = pb.GenerateStreamRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=16))
    pieces = [piece async for piece in stub.GenerateStream(request, metadata=key)]
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.finish_reason == pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert whole.usage == pieces[-1].usage
    assert whole.usage.completion_tokens == 16
    assert not any(piece.finish_reason or piece.HasField("usage") for piece in pieces[:-1])
    assert {piece.request_id for piece in pieces} != {whole.request_id}


async def test_a_conversation_is_answered_whole_and_in_pieces_alike(stub: Any, key: Any) -> None:
    whole = await stub.Chat(
        pb.ChatRequest(model=MODEL, messages=hello(), sampling=sampling(max_tokens=16)), metadata=key
    )
    request = pb.ChatStreamRequest(model=MODEL, messages=hello(), sampling=sampling(max_tokens=16))
    pieces = [piece async for piece in stub.ChatStream(request, metadata=key)]
    assert "".join(piece.text for piece in pieces) == whole.message.content
    assert whole.message.role == pb.ROLE_ASSISTANT


async def test_stop_strings_and_log_probabilities_arrive(stub: Any, key: Any) -> None:
    request = pb.GenerateRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=30, logprobs=2))
    whole = await stub.Generate(request, metadata=key)
    assert len(whole.logprobs) == 30
    assert all(len(position.top) == 2 for position in whole.logprobs)
    stop = whole.text[10:13]
    request.sampling.stop.append(stop)
    stopped = await stub.Generate(request, metadata=key)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == pb.FINISH_REASON_STOP
    assert len(stopped.logprobs) == stopped.usage.completion_tokens


async def test_tokens_are_counted_and_models_listed(stub: Any, key: Any, platform: InProcess) -> None:
    counted = await stub.CountTokens(pb.CountTokensRequest(model=MODEL, messages=hello()), metadata=key)
    answer = await stub.Chat(
        pb.ChatRequest(model=MODEL, messages=hello(), sampling=sampling(max_tokens=1)), metadata=key
    )
    assert counted.num_tokens == answer.usage.prompt_tokens
    models = (await stub.ListModels(pb.ListModelsRequest(), metadata=key)).models
    assert [(model.id, model.context_length) for model in models] == [(MODEL, 256)]
    assert models[0].revision == platform.decode_worker.card.revision


async def test_every_call_carries_a_request_id_the_failed_ones_too(stub: Any, key: Any) -> None:
    call = stub.Generate(pb.GenerateRequest(model=MODEL, prompt="x", sampling=sampling(max_tokens=1)), metadata=key)
    response = await call
    assert dict(await call.initial_metadata())["x-request-id"] == response.request_id
    for metadata in (key, ()):
        failing = stub.Generate(pb.GenerateRequest(model="none"), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await failing
        assert dict(caught.value.trailing_metadata() or ())["x-request-id"].startswith("req_")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer gk_1_wrong"),), (("authorization", "Basic x"),)])
async def test_no_method_is_open_without_a_key(stub: Any, method: MethodDescriptor, metadata: Any) -> None:
    request = getattr(pb, method.input_type.name)()
    call = getattr(stub, method.name)(request, metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method.server_streaming:
            _ = [piece async for piece in call]
        else:
            await call
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert trailing(caught.value)["gemline-code"] == "invalid_api_key"


async def test_health_is_open_and_reflection_wants_a_key(channel: grpc.aio.Channel, key: Any) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        status = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with pytest.raises(
        grpc.aio.AioRpcError
    ) as caught:  # a refusal that overtakes a message would be INTERNAL: no message
        _ = [response async for response in reflection.ServerReflectionInfo(iter(()))]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    (response,) = [response async for response in reflection.ServerReflectionInfo(iter(asked), metadata=key)]
    assert SERVICE in [service.name for service in response.list_services_response.service]


@pytest.mark.parametrize(
    ("request_", "code", "param", "message"),
    [
        (pb.GenerateRequest(model="gpt-9"), grpc.StatusCode.NOT_FOUND, "model", "there is no model 'gpt-9'"),
        (
            pb.GenerateRequest(model=MODEL, sampling=pb.SamplingOptions(temperature=9)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "temperature",
            "temperature must be from 0 to 2, not 9.0",
        ),
        (
            pb.GenerateRequest(model=MODEL, sampling=pb.SamplingOptions(max_tokens=0)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "max_tokens",
            "max_tokens must be at least 1, not 0",
        ),
        (
            pb.GenerateRequest(model=MODEL, prompt="word " * 600),
            grpc.StatusCode.INVALID_ARGUMENT,
            "prompt",
            "a context of 256 tokens",
        ),
        (pb.ChatRequest(model=MODEL), grpc.StatusCode.INVALID_ARGUMENT, "messages", "messages is empty"),
        (
            pb.ChatRequest(model=MODEL, messages=hello() * 5000),
            grpc.StatusCode.INVALID_ARGUMENT,
            "messages",
            "messages has 5000 entries; at most 4096 are taken",
        ),
        (
            pb.ChatRequest(model=MODEL, messages=[pb.Message(content="who?")]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "messages",
            "messages[0].role is 0",
        ),
        (
            pb.ChatRequest(model=MODEL, messages=[pb.Message(role=pb.ROLE_SYSTEM, content="be nice"), *hello()]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "messages",
            "system",
        ),
        (
            pb.CountTokensRequest(model=MODEL, prompt="x", messages=hello()),
            grpc.StatusCode.INVALID_ARGUMENT,
            "prompt",
            "either prompt or messages",
        ),
    ],
)
async def test_a_bad_request_gets_its_status_its_field_and_a_reason(
    stub: Any, key: Any, request_: Any, code: grpc.StatusCode, param: str, message: str
) -> None:
    method = getattr(stub, type(request_).__name__.removesuffix("Request"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request_, metadata=key)
    assert caught.value.code() is code
    assert trailing(caught.value)["gemline-param"] == param
    assert message in (caught.value.details() or "")


async def test_an_oversize_message_and_bytes_that_are_no_message_are_refused(
    stub: Any, channel: grpc.aio.Channel, key: Any
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(model=MODEL, prompt="x" * (5 * 2**20)), metadata=key)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    raw: Any = channel.unary_unary(f"/{SERVICE}/Generate")
    for garbage in (b"\xff\xff\xff", b"\x12\x02\xff\xfe"):
        with pytest.raises(grpc.aio.AioRpcError):
            await raw(garbage, metadata=key)
    assert await stub.ListModels(pb.ListModelsRequest(), metadata=key)


async def test_an_unknown_method_is_said_to_be_none(channel: grpc.aio.Channel, key: Any) -> None:
    method: Any = channel.unary_unary(f"/{SERVICE}/Hack")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"", metadata=key)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
async def test_a_client_that_leaves_frees_the_worker(stub: Any, key: Any, platform: InProcess, leave: str) -> None:
    request = pb.GenerateStreamRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=250))
    call = stub.GenerateStream(request, metadata=key, timeout=0.05 if leave == "deadline" else None)
    if leave == "cancel":
        await call.read()
        assert sum(platform.decode_worker.load()) == 1
        call.cancel()
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [piece async for piece in call]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: sum(platform.decode_worker.load()) == 0, timeout_s=1)


async def test_a_whole_answer_nobody_waits_for_is_given_up(stub: Any, key: Any, platform: InProcess) -> None:
    request = pb.GenerateRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=250))
    call = asyncio.ensure_future(stub.Generate(request, metadata=key))
    await eventually(lambda: sum(platform.decode_worker.load()) == 1)
    call.cancel()
    await eventually(lambda: sum(platform.decode_worker.load()) == 0, timeout_s=1)


async def test_a_worker_that_dies_under_a_stream_ends_it_with_a_clear_status(
    stub: Any, key: Any, platform: InProcess
) -> None:
    request = pb.GenerateStreamRequest(model=MODEL, prompt="Hello", sampling=sampling(max_tokens=250))
    call = stub.GenerateStream(request, metadata=key)
    await call.read()
    await platform.decode_worker.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(caught.value)["gemline-code"] == "worker_lost"
