"""One decode worker that prefills for itself, as gateways see it over its stream."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import redis.asyncio
from support.hand_gateway import Answer, HandGateway, attached
from support.workers import becomes_true, hosted, measure, measuring

from gemline.cluster.records import WorkerRecord
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.errors import ConfigurationError
from gemline.internal.v1 import decode_pb2
from gemline.internal.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP
from gemline.telemetry import Telemetry

GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
LONG = SamplingParams(max_tokens=60, temperature=0.0)
ENDLESS = SamplingParams(max_tokens=240, temperature=0.0)
PROMPT = [2, 300, 301, 302, 303]


@pytest.fixture
def telemetry() -> Telemetry:
    return measuring()


@pytest.fixture
async def record(tiny_checkpoint: Path, redis_url: str, telemetry: Telemetry) -> AsyncIterator[WorkerRecord]:
    engine = EngineOptions(num_kv_blocks=64, max_batch_tokens=64, max_running=8, max_waiting=8, num_threads=1)
    worker = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", engine, prefill="never"))
    async with hosted(worker, redis_url, telemetry) as record:
        yield record


@pytest.fixture
async def gateway(record: WorkerRecord) -> AsyncIterator[HandGateway]:
    async with attached(record.address, record.epoch) as gateway:
        yield gateway


def free_blocks(telemetry: Telemetry) -> tuple[float, float]:
    name = "gemline_kv_free_blocks"
    return measure(telemetry, name, kind="global"), measure(telemetry, name, kind="local")


async def test_an_answer_has_its_tokens_and_its_end(gateway: HandGateway) -> None:
    answer = await gateway.generate(1, PROMPT, GREEDY)

    assert len(answer.token_ids) == 8
    assert answer.finish == FINISH_REASON_LENGTH


async def test_a_stop_id_ends_an_answer_and_is_its_last_token(gateway: HandGateway) -> None:
    plain = await gateway.generate(1, PROMPT, GREEDY)
    stop_id = plain.token_ids[3]
    params = SamplingParams(max_tokens=8, temperature=0.0, stop_token_ids=frozenset({stop_id}))

    answer = await gateway.generate(2, PROMPT, params)

    assert answer.token_ids == plain.token_ids[: plain.token_ids.index(stop_id) + 1]
    assert answer.finish == FINISH_REASON_STOP


async def test_a_prefix_is_found_again_by_its_tenant_and_nobody_else(
    gateway: HandGateway, telemetry: Telemetry
) -> None:
    prompt = [2, *range(300, 350)]
    first = await gateway.generate(1, prompt, GREEDY, salt=b"tenant")
    again = await gateway.generate(2, prompt, GREEDY, salt=b"tenant")
    other = await gateway.generate(3, prompt, GREEDY, salt=b"another")

    assert first.token_ids == again.token_ids == other.token_ids
    assert [answer.num_cached[0] for answer in (first, again, other)] == [0, 48, 0]
    assert not any(again.num_cached[1:])
    assert measure(telemetry, "gemline_prefix_cache_queried_tokens_total") == 3 * 51
    assert measure(telemetry, "gemline_prefix_cache_hit_tokens_total") == 48
    assert free_blocks(telemetry) == (64, 48)


async def test_log_probabilities_come_one_per_token(gateway: HandGateway) -> None:
    params = SamplingParams(max_tokens=5, temperature=0.0, num_logprobs=2)

    answer = await gateway.generate(1, PROMPT, params)

    assert [ids[0] for ids, _ in answer.logprobs] == answer.token_ids
    assert all(len(ids) == len(values) == 3 for ids, values in answer.logprobs)


async def test_a_step_is_one_message_however_many_requests_are_in_it(
    gateway: HandGateway, telemetry: Telemetry
) -> None:
    answers = await asyncio.gather(*(gateway.generate(handle, PROMPT, LONG) for handle in range(6)))

    assert all(answer.token_ids == answers[0].token_ids for answer in answers)
    assert len(gateway.steps) <= measure(telemetry, "gemline_engine_steps_total")
    assert max(len(step.events) for step in gateway.steps) > 1


async def test_a_step_tells_the_load_of_the_worker(gateway: HandGateway) -> None:
    await asyncio.gather(*(gateway.generate(handle, PROMPT, LONG) for handle in range(3)))

    assert max(step.num_running for step in gateway.steps) >= 2
    assert (gateway.steps[-1].num_running, gateway.steps[-1].num_waiting) == (0, 0)


async def test_handles_belong_to_their_stream(record: WorkerRecord) -> None:
    async with (
        attached(record.address, record.epoch) as one,
        attached(record.address, record.epoch) as other,
    ):
        ours, theirs = await asyncio.gather(one.generate(7, PROMPT, GREEDY), other.generate(7, PROMPT[:3], GREEDY))
        again = await one.generate(7, PROMPT[:3], GREEDY)

    assert len(ours.token_ids) == len(theirs.token_ids) == 8
    assert again.token_ids == theirs.token_ids


async def test_a_cancelled_request_sends_nothing_more_and_frees_its_blocks(
    gateway: HandGateway, telemetry: Telemetry
) -> None:
    free = free_blocks(telemetry)
    answer = await gateway.submit(1, PROMPT, ENDLESS)
    await answer.first.wait()
    assert free_blocks(telemetry) != free

    await gateway.cancel(1)

    assert await becomes_true(lambda: free_blocks(telemetry) == free)
    num_tokens = len(answer.token_ids)
    await gateway.generate(2, PROMPT, GREEDY)
    assert len(answer.token_ids) <= num_tokens + 1  # one may have been on its way
    assert num_tokens < ENDLESS.max_tokens


async def test_a_request_is_cancelled_while_it_waits(gateway: HandGateway, telemetry: Telemetry) -> None:
    running = [await gateway.submit(handle, PROMPT, ENDLESS) for handle in range(8)]
    await asyncio.gather(*(answer.first.wait() for answer in running))
    await gateway.submit(8, PROMPT, GREEDY)
    for handle in range(9):
        await gateway.cancel(handle)

    free = free_blocks(telemetry)[0]
    assert free == 64 or await becomes_true(lambda: free_blocks(telemetry)[0] == 64)
    assert (await gateway.generate(9, PROMPT, GREEDY)).error == ""
    assert not gateway.answers[8].ended.is_set()


async def test_a_broken_stream_ends_all_of_its_requests_and_no_others(
    record: WorkerRecord, gateway: HandGateway, telemetry: Telemetry
) -> None:
    free = free_blocks(telemetry)
    kept = await gateway.submit(1, PROMPT, ENDLESS)
    async with attached(record.address, record.epoch) as other:
        lost = [await other.submit(handle, PROMPT, ENDLESS) for handle in range(4)]
        await asyncio.gather(*(answer.first.wait() for answer in lost))

    assert await becomes_true(lambda: measure(telemetry, "gemline_requests") <= 1)
    await asyncio.wait_for(kept.ended.wait(), 30)
    assert len(kept.token_ids) == ENDLESS.max_tokens
    assert await becomes_true(lambda: free_blocks(telemetry) == free)


@pytest.mark.parametrize(
    ("token_ids", "code"),
    [(list(range(2, 255)), "context_length_exceeded"), ([2, 99999], "invalid_request"), ([], "invalid_request")],
)
async def test_a_bad_request_gets_its_error_and_the_worker_goes_on(
    gateway: HandGateway, token_ids: list[int], code: str
) -> None:
    neighbour = await gateway.submit(1, PROMPT, GREEDY)

    refused = await gateway.generate(2, token_ids, GREEDY)

    assert refused.error == code
    assert refused.token_ids == []
    await asyncio.wait_for(neighbour.ended.wait(), 30)
    assert len(neighbour.token_ids) == 8


async def test_a_full_queue_is_said_to_be_overloaded(gateway: HandGateway) -> None:
    answers: list[Answer] = [await gateway.submit(handle, PROMPT, ENDLESS) for handle in range(40)]

    await asyncio.gather(*(asyncio.wait_for(answer.ended.wait(), 60) for answer in answers))

    assert {answer.error for answer in answers} == {"", "overloaded"}
    assert all(len(answer.token_ids) == 240 for answer in answers if not answer.error)


async def test_a_gateway_that_means_another_life_is_refused(record: WorkerRecord) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async with attached(record.address, record.epoch + 1):
            pass

    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("first", [decode_pb2.AttachRequest(), decode_pb2.AttachRequest(cancel=decode_pb2.Cancel())])
async def test_a_stream_that_does_not_begin_with_hello_is_refused(
    record: WorkerRecord, gateway: HandGateway, first: decode_pb2.AttachRequest
) -> None:
    async with grpc.aio.insecure_channel(record.address) as channel:
        call = channel.stream_stream(
            "/gemline.internal.v1.Decode/Attach",
            request_serializer=decode_pb2.AttachRequest.SerializeToString,
            response_deserializer=decode_pb2.AttachResponse.FromString,
        )()
        await call.write(first)

        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT

    assert len((await gateway.generate(1, PROMPT, GREEDY)).token_ids) == 8


async def test_a_handle_that_is_alive_cannot_be_used_again(gateway: HandGateway) -> None:
    await gateway.submit(1, PROMPT, ENDLESS)
    await gateway.submit(1, PROMPT, ENDLESS)

    assert await asyncio.wait_for(gateway.broken, 10) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_that_cannot_load_its_model_does_not_start(
    tiny_checkpoint: Path, tmp_path: Path, redis_url: str
) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint / "config.json").read_text())

    with pytest.raises(ConfigurationError, match="safetensors"):
        async with hosted(DecodeWorker(DecodeOptions(tmp_path, "tiny")), redis_url):
            pass

    client = redis.asyncio.Redis.from_url(redis_url)
    assert await client.keys("*worker*") == []
    await client.aclose()
