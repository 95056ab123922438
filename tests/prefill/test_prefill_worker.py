"""A prefill worker as a decode worker sees it: frames while it computes, and what becomes of a stream that breaks."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from support.hand_prefill import call_prefill
from support.workers import becomes_true, hosted, measure, measuring

from gemline.cluster.records import WorkerRecord
from gemline.engine.engine import Engine
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.errors import ConfigurationError
from gemline.internal.v1.prefill_pb2 import HeadRange, KvLayout, KvOffer, PrefillEnd, PrefillRequest
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.rpc.convert import sampling_to_proto
from gemline.rpc.options import open_channel
from gemline.telemetry import Telemetry
from gemline.transfer.fetch import Fetch
from gemline.transfer.frames import KvHeader, KvRange, split, verify
from gemline.transfer.offering import Offer
from gemline.transfer.receive import FrameReader
from gemline.transfer.transports import KvTransportSetting, Transport

ENGINE = EngineOptions(num_kv_blocks=40, max_batch_tokens=24, max_running=8, max_waiting=4, num_threads=1)
PARAMS = SamplingParams(max_tokens=1, temperature=0.0, num_logprobs=1)


def prompt(num_tokens: int) -> list[int]:
    return [2, *(300 + 7 * i % 400 for i in range(1, num_tokens))]


@pytest.fixture
def telemetry() -> Telemetry:
    return measuring()


@pytest.fixture
def worker(tiny_checkpoint: Path) -> PrefillWorker:
    return PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE, write_timeout_s=1.0))


@pytest.fixture
async def record(worker: PrefillWorker, redis_url: str, telemetry: Telemetry) -> AsyncIterator[WorkerRecord]:
    async with hosted(worker, redis_url, telemetry) as record:
        yield record


@pytest.fixture
async def channel(record: WorkerRecord) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(record.address) as channel:
        yield channel


def request_for(record: WorkerRecord, token_ids: list[int], params: SamplingParams = PARAMS) -> PrefillRequest:
    return PrefillRequest(
        epoch=record.epoch,
        request_id="req_1",
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=sampling_to_proto(params),
        layout=KvLayout(model_revision=record.model.revision, dtype="float32", quantization="none", kv_dtype="float32"),
    )


async def collect(
    channel: grpc.aio.Channel, request: PrefillRequest
) -> tuple[dict[tuple[int, int], bytes], PrefillEnd, list[KvRange]]:
    """The bytes of each position of each layer, the end frame, and the ranges in their order."""
    at: dict[tuple[int, int], bytes] = {}
    ranges: list[KvRange] = []
    async for data in call_prefill(channel, request):
        header, payload = split(data)
        if header.HasField("end"):
            return at, header.end, ranges
        verify(header.kv, payload)
        ranges.append(KvRange(header.kv.layer, header.kv.start, header.kv.stop))
        at |= by_position(header.kv, payload)
    raise AssertionError("the stream ended before its end frame")


def by_position(kv: KvHeader, payload: memoryview) -> dict[tuple[int, int], bytes]:
    half = payload.nbytes // 2
    size = half // (kv.stop - kv.start)
    return {
        (kv.layer, position): bytes(payload[index * size : (index + 1) * size])
        + bytes(payload[half + index * size : half + (index + 1) * size])
        for index, position in enumerate(range(kv.start, kv.stop))
    }


def computed_here(model_dir: Path, token_ids: list[int]) -> tuple[dict[tuple[int, int], bytes], int]:
    """The same by an engine of our own."""
    engine = Engine.load(model_dir, ENGINE)
    engine.add(EngineRequest(1, tuple(token_ids), len(token_ids), PARAMS, hold=True))
    while not (result := engine.step()).tokens:
        pass
    at = {
        (layer, position): bytes(engine.export_kv(1, layer, position, position + 1))
        for layer, (start, stop) in enumerate(engine.kv_ranges(len(token_ids)))
        for position in range(start, stop)
    }
    return at, result.tokens[0].token_id


def all_free(telemetry: Telemetry) -> bool:
    return measure(telemetry, "gemline_kv_free_blocks", kind="global") == 40


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 24, 100])
async def test_the_frames_hold_what_an_engine_computes(
    record: WorkerRecord, channel: grpc.aio.Channel, tiny_checkpoint: Path, num_tokens: int
) -> None:
    token_ids = prompt(num_tokens)

    at, end, _ = await collect(channel, request_for(record, token_ids))

    expected, token_id = computed_here(tiny_checkpoint, token_ids)
    assert at == expected
    assert end.token_id == token_id
    assert end.logprobs.token_ids[0] == token_id


async def fetched(
    record: WorkerRecord, channel: grpc.aio.Channel, offered: set[Transport], host_id: str | None = None
) -> tuple[dict[tuple[int, int], bytes], Fetch]:
    """The bytes of each position of each layer of a prompt of 100, and how they came."""
    threads, window = ThreadPoolExecutor(1), 16
    offer = Offer(frozenset(offered), "127.0.0.1", threads)
    request = request_for(record, prompt(100))
    request.offer.CopyFrom(offer.message or KvOffer())
    if host_id is not None:
        request.offer.host_id = host_id
    reader = FrameReader([range(100 - window + 1, 100), range(100)], 2 * 2 * 16 * 4)
    at: dict[tuple[int, int], bytes] = {}
    with Fetch(call_prefill(channel, request).__aiter__(), offer, reader) as fetch:
        async for frame in fetch.frames():
            verify(frame.header, frame.payload)
            at |= by_position(frame.header, frame.payload)
            frame.release()
    return at, fetch


BOTH = {Transport.SHM, Transport.SOCKET}


@pytest.mark.parametrize(
    ("setting", "offered", "host_id", "chosen"),
    [
        ("auto", BOTH, None, Transport.SHM),
        ("auto", BOTH, "another host", Transport.SOCKET),
        ("auto", {Transport.SHM}, "another host", Transport.GRPC),
        ("auto", set(), None, Transport.GRPC),
        ("socket", BOTH, None, Transport.SOCKET),
        ("shm", BOTH, None, Transport.SHM),
        ("grpc", BOTH, None, Transport.GRPC),
        ("nixl", BOTH, None, Transport.GRPC),
    ],
)
async def test_whatever_way_they_take_the_bytes_are_the_same(
    tiny_checkpoint: Path,
    redis_url: str,
    setting: KvTransportSetting,
    offered: set[Transport],
    host_id: str | None,
    chosen: Transport,
) -> None:
    worker = PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE, kv_transport=setting))
    async with hosted(worker, redis_url) as record, open_channel(record.address) as channel:
        at, fetch = await fetched(record, channel, offered, host_id)
        plain, _, _ = await collect(channel, request_for(record, prompt(100)))

    assert fetch.transport is chosen
    assert at == plain
    assert fetch.failed == []


async def test_callers_of_one_head_each_get_what_a_caller_of_both_gets(
    record: WorkerRecord, channel: grpc.aio.Channel
) -> None:
    whole, _, _ = await collect(channel, request_for(record, prompt(60)))
    halves = []
    for head in range(2):
        request = request_for(record, prompt(60))
        request.heads.CopyFrom(HeadRange(start=head, stop=head + 1))
        halves.append((await collect(channel, request))[0])

    row = 16 * 4  # of a head
    for place, both in whole.items():
        keys = halves[0][place][:row] + halves[1][place][:row]
        assert both == keys + halves[0][place][row:] + halves[1][place][row:]


@pytest.mark.parametrize(("wire_dtype", "part"), [("bfloat16", 2), ("float8_e4m3", 4), ("float32", 1)])
async def test_a_narrower_dtype_takes_a_part_of_the_bytes(
    record: WorkerRecord, channel: grpc.aio.Channel, wire_dtype: str, part: int
) -> None:
    _, plain, _ = await collect(channel, request_for(record, prompt(60)))
    request = request_for(record, prompt(60))
    request.wire_dtype = wire_dtype

    _, end, _ = await collect(channel, request)

    assert end.num_bytes * part == plain.num_bytes
    assert end.token_id == plain.token_id


async def test_an_end_frame_tells_how_long_the_prompt_took_and_how_long_ago_that_was(
    record: WorkerRecord, channel: grpc.aio.Channel
) -> None:
    _, end, _ = await collect(channel, request_for(record, prompt(240)))

    assert 0 < end.since_computed_s < 60
    assert 0 < end.prefill_s < 60


async def test_early_chunks_are_sent_while_later_ones_are_computed(
    record: WorkerRecord, channel: grpc.aio.Channel, telemetry: Telemetry
) -> None:
    call = call_prefill(channel, request_for(record, prompt(240)))

    first, _ = split(await call.read())

    assert 0 < first.kv.stop < 240
    call.cancel()


async def test_a_cancelled_call_frees_its_blocks(
    record: WorkerRecord, channel: grpc.aio.Channel, telemetry: Telemetry
) -> None:
    calls = [call_prefill(channel, request_for(record, prompt(240))) for _ in range(3)]
    for call in calls:
        await call.read()
        call.cancel()

    assert await becomes_true(lambda: all_free(telemetry))
    assert (await collect(channel, request_for(record, prompt(20))))[1].num_bytes > 0


async def test_a_caller_that_vanishes_frees_its_blocks(record: WorkerRecord, telemetry: Telemetry) -> None:
    async with open_channel(record.address) as channel:
        await call_prefill(channel, request_for(record, prompt(240))).read()

    assert await becomes_true(lambda: all_free(telemetry))


async def test_prompts_that_preempt_each_other_are_sent_whole(
    record: WorkerRecord, channel: grpc.aio.Channel, telemetry: Telemetry, tiny_checkpoint: Path
) -> None:
    prompts = [prompt(n) for n in (240, 230, 220, 210)]

    answers = await asyncio.gather(*(collect(channel, request_for(record, token_ids)) for token_ids in prompts))

    for token_ids, (at, end, _) in zip(prompts, answers, strict=True):
        expected, token_id = computed_here(tiny_checkpoint, token_ids)
        assert at.keys() == expected.keys()
        assert end.token_id == token_id
    assert await becomes_true(lambda: all_free(telemetry))


async def test_a_full_worker_says_so(record: WorkerRecord, channel: grpc.aio.Channel) -> None:
    outcomes = await asyncio.gather(
        *(collect(channel, request_for(record, prompt(200))) for _ in range(30)), return_exceptions=True
    )

    codes = {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert any(isinstance(outcome, tuple) for outcome in outcomes)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epoch": 99}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"layout": KvLayout(model_revision="f" * 64, dtype="float32")}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"token_ids": []}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": [99999], "num_prompt_tokens": 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": prompt(256), "num_prompt_tokens": 256}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"heads": HeadRange(start=1, stop=3)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"heads": HeadRange(start=1, stop=1)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"wire_dtype": "float16"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_call_that_cannot_be_served_is_refused_with_its_status(
    record: WorkerRecord, channel: grpc.aio.Channel, change: dict[str, object], code: grpc.StatusCode
) -> None:
    request = request_for(record, prompt(20))
    for name in change:
        request.ClearField(name)  # type: ignore[arg-type]
    request.MergeFrom(PrefillRequest(**change))  # type: ignore[arg-type]

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await collect(channel, request)

    assert refusal.value.code() is code
    assert (await collect(channel, request_for(record, prompt(20))))[1].num_frames > 0


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "bfloat16"), ("quantization", "int8"), ("kv_dtype", "float8_e4m3")]
)
async def test_keys_and_values_of_another_precision_are_refused(
    record: WorkerRecord, channel: grpc.aio.Channel, field: str, value: str
) -> None:
    request = request_for(record, prompt(20))
    setattr(request.layout, field, value)

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await collect(channel, request)

    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"/{value}" in (refusal.value.details() or "")


async def test_a_draining_worker_finishes_what_it_has(
    worker: PrefillWorker, record: WorkerRecord, channel: grpc.aio.Channel
) -> None:
    running = asyncio.create_task(collect(channel, request_for(record, prompt(240))))
    assert await becomes_true(lambda: worker.load() != (0, 0))

    await worker.drain(30)

    assert (await running)[1].num_frames > 0
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await collect(channel, request_for(record, prompt(20)))
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_of_an_earlier_epoch_ends(
    worker: PrefillWorker, record: WorkerRecord, channel: grpc.aio.Channel, telemetry: Telemetry
) -> None:
    running = asyncio.create_task(collect(channel, request_for(record, prompt(240))))
    assert await becomes_true(lambda: worker.load() != (0, 0))

    worker.epoch_changed(record.epoch + 1)

    with pytest.raises(grpc.aio.AioRpcError) as end:
        await running
    assert end.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await becomes_true(lambda: all_free(telemetry))


async def test_a_worker_without_its_tokenizer_does_not_start(
    tiny_checkpoint: Path, tmp_path: Path, redis_url: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer.json"))

    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        async with hosted(
            PrefillWorker(PrefillOptions(tmp_path / "copy", "tiny", replace(ENGINE, dtype="bfloat16"))), redis_url
        ):
            pass
