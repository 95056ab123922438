"""Limits over gRPC: how they stand after every answer, and errors that say when to try again."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from support.in_process import MODEL, InProcess

from gemline.client import AsyncClient, RetryPolicy
from gemline.cluster.access import KeyRecord
from gemline.cluster.limits import Limits
from gemline.errors import RateLimited
from gemline.gateway.grpc_server import PublicServer
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub


@pytest.fixture
async def address(platform: InProcess) -> AsyncIterator[str]:
    server = await PublicServer(platform.gateway, platform.settings).start()
    yield server.address
    await server.stop()


async def key_with(platform: InProcess, limits: Limits) -> str:
    return (await platform.access.create_key(KeyRecord("acme", limits=limits))).key


def detail(trailing: Any, kind: Any) -> Any:
    """The error's detail of that kind, None without one."""
    status = Status.FromString(dict(trailing)["grpc-status-details-bin"])
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None


async def test_every_answer_tells_how_the_limits_stand_and_a_refusal_when_to_come_again(
    platform: InProcess, address: str
) -> None:
    key = await key_with(platform, Limits(requests_per_min=2, tokens_per_min=100))
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        sampling = pb.SamplingOptions(max_tokens=20, temperature=0.0)
        call = stub.Generate(pb.GenerateRequest(model=MODEL, prompt="Hi", sampling=sampling), metadata=metadata)
        await call
        trailing = dict(await call.trailing_metadata())
        assert trailing["x-ratelimit-limit-requests"] == "2"
        assert 0 < int(trailing["x-ratelimit-remaining-tokens"]) <= 80
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    error = caught.value
    trailing = dict(error.trailing_metadata() or ())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing["x-ratelimit-remaining-requests"] == "0"
    assert 1000 <= int(trailing["grpc-retry-pushback-ms"]) <= 61_000
    assert detail(error.trailing_metadata(), ErrorInfo).reason == "RATE_LIMIT_EXCEEDED"
    assert 1 <= detail(error.trailing_metadata(), RetryInfo).retry_delay.seconds <= 61
    (violation,) = detail(error.trailing_metadata(), QuotaFailure).violations
    assert "may have 2 requests a minute, has 2" in violation.description


async def test_a_call_far_from_its_limit_is_counted_once_in_one_question(
    platform: InProcess, address: str, num_asked: Callable[[], int]
) -> None:
    metadata = (("authorization", f"Bearer {await key_with(platform, Limits(requests_per_min=9))}"),)
    good = pb.SamplingOptions(max_tokens=4, temperature=0.0)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        # What is sent, how it ends, and how often Redis is asked; the first time nothing is known of the key.
        for sampling, expected, num in (
            (good, grpc.StatusCode.OK, 2),
            (good, grpc.StatusCode.OK, 1),
            (pb.SamplingOptions(temperature=-1.0), grpc.StatusCode.INVALID_ARGUMENT, 1),
            (good, grpc.StatusCode.OK, 1),
        ):
            before = num_asked()
            call = stub.GenerateStream(
                pb.GenerateStreamRequest(model=MODEL, prompt="Hi", sampling=sampling), metadata=metadata
            )
            with suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert (await call.code(), num_asked() - before) == (expected, num)
        assert dict(await call.trailing_metadata())["x-ratelimit-remaining-requests"] == "5"


async def test_a_wrong_field_is_a_bad_request_that_names_it(platform: InProcess, address: str) -> None:
    metadata = (("authorization", f"Bearer {platform.api_key}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        sampling = pb.SamplingOptions(temperature=-1.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(model=MODEL, prompt="Hi", sampling=sampling), metadata=metadata)
    assert detail(caught.value.trailing_metadata(), BadRequest).field_violations[0].field == "temperature"
    assert detail(caught.value.trailing_metadata(), RetryInfo) is None


async def test_the_sdk_knows_when_to_come_again(platform: InProcess, address: str) -> None:
    key = await key_with(platform, Limits(requests_per_min=1))
    async with AsyncClient(address, api_key=key, retry=RetryPolicy(max_attempts=3), timeout_s=5) as client:
        await client.models()
        with pytest.raises(RateLimited) as caught:  # a pause of a minute does not fit into its time
            await client.models()
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 61
