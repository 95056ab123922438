"""Streamed answers, the same through both clients."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from support.client_api import AnyStream, ClientApi, entered, next_piece, read_all
from support.fake_gateway import REQUEST_ID, Fail, FakeGateway, Say

from gemline.client import AsyncClient, Message, Piece, Usage
from gemline.errors import InternalError, InvalidRequest, WorkerLost

HANG = Say(pieces=("a",), hang=True)


def start(api: ClientApi, kind: str, **options: Any) -> AnyStream:
    return (
        api.generate_stream("x", **options)
        if kind == "generate"
        else api.chat_stream([Message("user", "x")], **options)
    )


@pytest.mark.parametrize(("kind", "reason"), [("generate", "stop"), ("chat", "length")])
async def test_pieces_come_in_order_and_the_last_one_closes_the_account(api: ClientApi, kind: str, reason: str) -> None:
    async with entered(start(api, kind)) as stream:
        pieces = await read_all(stream)
    usage = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)
    assert pieces == [Piece("Hel"), Piece("lo"), Piece("", finish_reason=reason, usage=usage)]
    assert (stream.text, stream.finish_reason, stream.usage) == ("Hello", reason, usage)


async def test_nothing_is_known_before_the_first_piece_and_the_request_id_with_it(api: ClientApi) -> None:
    stream = api.generate_stream("x")
    assert (stream.request_id, stream.text, stream.finish_reason, stream.usage) == (None, "", None, None)
    await next_piece(stream)
    assert (stream.request_id, stream.text, stream.finish_reason) == (REQUEST_ID, "Hel", None)
    await read_all(stream)


async def test_a_stream_that_is_over_stays_over(api: ClientApi) -> None:
    stream = api.generate_stream("x")
    await read_all(stream)
    assert await read_all(stream) == []


async def test_logprobs_gather_over_the_pieces(api: ClientApi, gateway: FakeGateway) -> None:
    from gemline.v1 import inference_pb2 as pb

    position = pb.PositionLogprobs(chosen=pb.TokenLogprob(token_id=1, logprob=-1.0))
    gateway.script.append(Say(pieces=("a", "b"), logprobs=(position,)))
    stream = api.generate_stream("x", logprobs=0)
    await read_all(stream)
    assert [position.chosen.token_id for position in stream.logprobs] == [1, 1]


async def test_cancel_ends_the_iteration_and_reaches_the_gateway(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(HANG)
    stream = api.generate_stream("x")
    assert await next_piece(stream) == Piece("a")
    stream.cancel()
    assert await read_all(stream) == []
    assert (stream.text, stream.finish_reason, stream.usage) == ("a", None, None)
    assert await asyncio.to_thread(gateway.ended.wait, 2)


async def test_cancel_wakes_an_iteration_that_waits(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(HANG)
    stream = api.generate_stream("x")
    assert await next_piece(stream) == Piece("a")
    reading = asyncio.create_task(read_all(stream))
    await asyncio.sleep(0.05)
    stream.cancel()
    assert await asyncio.wait_for(reading, 2) == []


async def test_cancel_ends_the_wait_for_another_try(api: ClientApi, gateway: FakeGateway) -> None:
    metadata = (("grpc-retry-pushback-ms", "20000"),)
    gateway.script.append(Fail(grpc.StatusCode.UNAVAILABLE, metadata=metadata))
    stream = api.generate_stream("x")
    reading = asyncio.create_task(read_all(stream))
    await asyncio.to_thread(gateway.ended.wait, 2)
    await asyncio.sleep(0.05)
    stream.cancel()
    assert await asyncio.wait_for(reading, 2) == []


async def test_cancel_before_the_first_piece_sends_nothing(api: ClientApi, gateway: FakeGateway) -> None:
    stream = api.generate_stream("x")
    stream.cancel()
    assert await read_all(stream) == []
    assert gateway.requests == []


async def test_leaving_the_block_cancels_what_still_runs(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(HANG)
    async with entered(api.generate_stream("x")) as stream:
        await next_piece(stream)
    assert await asyncio.to_thread(gateway.ended.wait, 2)
    assert await read_all(stream) == []


async def test_an_error_in_the_block_cancels_too_and_is_raised_as_it_is(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(HANG)
    with pytest.raises(LookupError):
        async with entered(api.generate_stream("x")) as stream:
            await next_piece(stream)
            raise LookupError
    assert await asyncio.to_thread(gateway.ended.wait, 2)


async def test_an_error_after_the_first_piece_is_typed_and_the_text_so_far_is_kept(
    api: ClientApi, gateway: FakeGateway
) -> None:
    lost = Fail(grpc.StatusCode.UNAVAILABLE, "the worker is gone", (("gemline-code", "worker_lost"),))
    gateway.script.append(Say(pieces=("a", "b"), fail=lost))
    stream = api.generate_stream("x")
    # gRPC may drop pieces that the error overtakes; the first one is read before it is sent.
    assert await next_piece(stream) == Piece("a")
    with pytest.raises(WorkerLost, match="the worker is gone"):
        await read_all(stream)
    assert stream.text in ("a", "ab")
    assert len(gateway.requests) == 1


async def test_an_error_before_the_first_piece_comes_with_the_request_id(api: ClientApi, gateway: FakeGateway) -> None:
    metadata = (("gemline-code", "invalid_request"), ("gemline-param", "max_tokens"))
    gateway.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, "too many", metadata))
    stream = api.generate_stream("x")
    with pytest.raises(InvalidRequest, match="too many") as caught:
        await next_piece(stream)
    assert caught.value.param == "max_tokens"
    assert stream.request_id == REQUEST_ID


async def test_a_stream_that_ends_without_its_last_piece_is_an_error(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Say(pieces=("a",), break_off=True))
    stream = api.generate_stream("x")
    with pytest.raises(InternalError, match=REQUEST_ID):
        await read_all(stream)
    assert await read_all(stream) == []


async def test_a_canceled_task_cancels_its_call(gateway: FakeGateway, served: Any) -> None:
    gateway.script.append(HANG)
    async with AsyncClient(served.address) as client:
        stream = client.generate_stream("x")
        await next_piece(stream)
        reading = asyncio.create_task(read_all(stream))
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(gateway.ended.wait, 2)


async def test_a_stream_nobody_reads_any_more_does_not_outlive_its_client(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(HANG)
    begun = time.monotonic()
    await next_piece(api.generate_stream("x"))
    await api.close()
    assert await asyncio.to_thread(gateway.ended.wait, 2)
    assert time.monotonic() - begun < 3
