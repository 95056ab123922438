"""What a decode worker does for requests that come from another, or are to go to one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from support.hand_gateway import Answer, HandGateway, attached
from support.workers import becomes_true

from gemline.cluster.records import WorkerRecord
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.host import HostSettings, WorkerHost
from gemline.internal.v1 import decode_pb2
from gemline.internal.v1.sampling_pb2 import FINISH_REASON_LENGTH
from gemline.rpc.convert import sampling_to_proto
from gemline.telemetry import off

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
ENDLESS = SamplingParams(max_tokens=240, temperature=0.0)
PROMPT = [2, 300, 301, 302, 303]

PARAMS = {
    "greedy": GREEDY,
    "seeded": SamplingParams(max_tokens=12, seed=5, num_logprobs=2),
    "penalized": SamplingParams(
        max_tokens=12, seed=5, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=1.0
    ),
}


@pytest.fixture
def worker(tiny_checkpoint: Path) -> DecodeWorker:
    engine = EngineOptions(num_kv_blocks=64, max_batch_tokens=64, max_running=1, num_threads=1)
    return DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", engine, prefill="never"))


@pytest.fixture
async def host(worker: DecodeWorker, redis_url: str) -> AsyncIterator[WorkerHost]:
    host = WorkerHost(worker, HostSettings(redis_url, metrics_port=None, drain_timeout_s=0.2), off())
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
def record(host: WorkerHost) -> WorkerRecord:
    return host.record


async def resume(gateway: HandGateway, handle: int, generated: Sequence[int], params: SamplingParams) -> Answer:
    """The request as a gateway sends it on when another worker has generated those already."""
    answer = gateway.answers[handle] = Answer()
    submit = decode_pb2.Submit(
        handle=handle,
        request_id=f"req_{handle}",
        token_ids=[*PROMPT, *generated],
        num_prompt_tokens=len(PROMPT),
        sampling=sampling_to_proto(params),
    )
    await gateway._write(decode_pb2.AttachRequest(submit=submit))
    await asyncio.wait_for(answer.ended.wait(), 30)
    return answer


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
async def test_a_request_that_comes_with_generated_tokens_goes_on_behind_them(
    record: WorkerRecord, params: SamplingParams
) -> None:
    async with attached(record.address, record.epoch) as gateway:
        whole = await gateway.generate(100, PROMPT, params)
        for num in range(1, params.max_tokens):
            rest = await resume(gateway, num, whole.token_ids[:num], params)
            assert (rest.token_ids, rest.finish) == (whole.token_ids[num:], FINISH_REASON_LENGTH)
            assert len(rest.logprobs) == len(whole.logprobs[num:])


@pytest.mark.parametrize("cut_short", [False, True], ids=["its time is up", "it is cut short"])
async def test_a_drain_that_ends_early_lets_requests_go_with_a_word(
    host: WorkerHost, record: WorkerRecord, worker: DecodeWorker, cut_short: bool
) -> None:
    async with attached(record.address, record.epoch) as gateway:
        for handle in range(1, 40):  # one after the other: more than there is time for
            answer = await gateway.submit(handle, PROMPT, ENDLESS)
        assert await becomes_true(lambda: any(39 in stream.seq_ids for stream in worker._requests._streams))
        draining = asyncio.create_task(host.drain())
        if cut_short:
            assert await becomes_true(lambda: worker._requests.draining)  # Redis hears of it first
            draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        assert await asyncio.wait_for(gateway.broken, 10) is grpc.StatusCode.UNAVAILABLE
        assert ("gemline-code", "unavailable") in [tuple(item) for item in await gateway.call.trailing_metadata()]
        assert not answer.ended.is_set()
        assert worker.load() == (0, 0)


async def test_a_gateway_whose_requests_wait_hears_that_the_engine_steps(
    record: WorkerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemline.decode.streams.SIGN_OF_LIFE_S", 0.01)
    async with (
        attached(record.address, record.epoch) as running,
        attached(record.address, record.epoch) as queued,
        attached(record.address, record.epoch) as idle,
    ):
        first = await running.submit(1, PROMPT, ENDLESS)
        await first.first.wait()
        second = await queued.submit(1, PROMPT, GREEDY)
        await asyncio.wait_for(first.ended.wait(), 30)
        signs = [step for step in queued.steps if not step.events]
        assert len(signs) >= 3
        assert (signs[0].num_running, signs[0].num_waiting) == (1, 1)
        assert not idle.steps
        await asyncio.wait_for(second.ended.wait(), 30)
        assert len(second.token_ids) == GREEDY.max_tokens
