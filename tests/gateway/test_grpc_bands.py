"""Bands over gRPC: what is asked for, what the tenant may have, and what the answer tells."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from support.in_process import MODEL, InProcess

from gemline.client import AsyncClient, Message
from gemline.cluster.access import Band, KeyRecord, TenantRecord
from gemline.errors import InvalidRequest
from gemline.gateway.grpc_server import PublicServer
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

HELLO = [Message("user", "Hello")]
BANDS: tuple[Band, ...] = ("priority", "default", "batch")


@pytest.fixture
async def address(platform: InProcess) -> AsyncIterator[str]:
    server = await PublicServer(platform.gateway, platform.settings).start()
    yield server.address
    await server.stop()


async def key_of(platform: InProcess, band: Band) -> str:
    await platform.access.put_tenant(TenantRecord(band, band=band), is_new=True)
    return (await platform.access.create_key(KeyRecord(band))).key


@pytest.mark.parametrize("own", BANDS)
async def test_a_request_may_be_less_urgent_than_its_tenant_and_not_more(
    platform: InProcess, address: str, own: Band
) -> None:
    async with AsyncClient(address, api_key=await key_of(platform, own), model=MODEL) as client:
        for asked in (None, *BANDS):
            served = BANDS[max(BANDS.index(own), BANDS.index(asked or own))]
            assert (await client.generate("Hello", max_tokens=1, band=asked)).band == served
            assert (await client.chat(HELLO, max_tokens=1, band=asked)).band == served


async def test_a_stream_tells_its_band_with_the_last_piece(platform: InProcess, address: str) -> None:
    async with AsyncClient(address, api_key=platform.api_key, model=MODEL) as client:
        session = await client.sessions.create()
        for stream in (
            client.generate_stream("Hello", max_tokens=3, ignore_eos=True, band="batch"),
            client.chat_stream(HELLO, max_tokens=3, ignore_eos=True, band="batch"),
            session.stream("Hello", max_tokens=3, ignore_eos=True, band="batch"),
        ):
            async with stream:
                pieces = [piece async for piece in stream]
            assert [piece.band for piece in pieces] == [None] * (len(pieces) - 1) + ["batch"]
            assert stream.band == "batch"


async def test_a_band_that_is_none_is_refused_by_the_client_and_by_the_gateway(
    platform: InProcess, address: str
) -> None:
    async with AsyncClient(address, api_key=platform.api_key, model=MODEL) as client:
        with pytest.raises(InvalidRequest, match="band must be one of priority, default, batch, not 'urgent'"):
            await client.generate("Hello", band="urgent")
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = InferenceStub(channel)
        request = pb.GenerateRequest(model=MODEL, prompt="Hello")
        request.MergeFromString(b"\x20\x63")  # band 99, of a later release
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request, metadata=(("authorization", f"Bearer {platform.api_key}"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "band" in (caught.value.details() or "")
