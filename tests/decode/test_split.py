"""Prefill on one worker, decode on another: the same answers as on one, whatever happens in between."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support import hand_data, hand_prefill
from support.hand_gateway import HandGateway, attached
from support.hand_prefill import Spoiler, frozen_after, leased, registered, served
from support.hand_transfer import num_mappings
from support.workers import becomes_true, hosted, measure, measuring

from gemline.cluster.records import ModelCard, WorkerRecord
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.config import Gemma2Config
from gemline.engine.handover import kv_ranges
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.telemetry import Telemetry
from gemline.transfer.transports import KvTransportSetting

ENGINE = EngineOptions(num_kv_blocks=64, max_batch_tokens=24, max_running=8, max_waiting=64, num_threads=1)
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, num_logprobs=1)
SEEDED = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=7, num_logprobs=1, repetition_penalty=1.2)
WINDOW = 16  # of the tiny checkpoint, and its block size; TOKEN_BYTES: keys and values, 2 heads of 16 floats
TOKEN_BYTES = 2 * 2 * 16 * 4
every_transport = pytest.mark.parametrize("transport", ["shm", "socket", "grpc"], indirect=True)


def prompt(num_tokens: int) -> list[int]:
    return [2, *(300 + 7 * i % 400 for i in range(1, num_tokens))]


@dataclass(frozen=True)
class Split:
    """A prefill and a decode worker: what Redis says of them, and what they measure."""

    prefill_record: WorkerRecord
    decode_record: WorkerRecord
    prefill: Telemetry
    decode: Telemetry
    prefill_worker: PrefillWorker
    transport: KvTransportSetting

    def idle(self) -> bool:
        return all(measure(end, "gemline_kv_free_blocks", kind="global") == 64 for end in (self.prefill, self.decode))


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> KvTransportSetting:
    """By which keys and values travel: the best one, unless a test asks for others."""
    asked: KvTransportSetting = getattr(request, "param", "auto")
    return asked


@pytest.fixture
async def split(tiny_checkpoint: Path, redis_url: str, transport: KvTransportSetting) -> AsyncIterator[Split]:
    prefill, decode = measuring(), measuring()
    prefill_worker = PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE))
    decode_worker = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always", transport))
    async with (
        hosted(prefill_worker, redis_url, prefill) as prefill_record,
        hosted(decode_worker, redis_url, decode) as decode_record,
    ):
        yield Split(prefill_record, decode_record, prefill, decode, prefill_worker, transport)
        assert measure(decode, "gemline_kv_received_bytes_total") == measure(
            decode, "gemline_kv_received_bytes_total", transport="shm" if transport == "auto" else transport
        )


@pytest.fixture
async def gateway(split: Split) -> AsyncIterator[HandGateway]:
    async with attached(split.decode_record.address, split.decode_record.epoch) as gateway:
        yield gateway


@pytest.fixture
async def colocated(tiny_checkpoint: Path, redis_url: str) -> AsyncIterator[HandGateway]:
    """The oracle: one worker that does both."""
    options = DecodeOptions(tiny_checkpoint, "tiny", ENGINE, prefill="never")
    async with (
        hosted(DecodeWorker(options), redis_url, measuring()) as record,
        attached(record.address, record.epoch) as gateway,
    ):
        yield gateway


def prefills(telemetry: Telemetry, where: str) -> float:
    return measure(telemetry, "gemline_prefills_total", where=where)


def hanging(split: Split) -> Spoiler:
    """After some frames nothing comes any more."""
    is_grpc = split.transport == "grpc"
    return Spoiler(split.prefill_record, 2 if is_grpc else 1, hand_prefill.hang)


async def same_answer(one: HandGateway, other: HandGateway, token_ids: list[int], params: SamplingParams) -> bool:
    handle = 1000 + len(one.answers)
    ours, theirs = await asyncio.gather(
        one.generate(handle, token_ids, params), other.generate(handle, token_ids, params)
    )
    assert ours.error == theirs.error == ""
    return (ours.token_ids, ours.logprobs, ours.finish) == (theirs.token_ids, theirs.logprobs, theirs.finish)


@every_transport
async def test_split_and_colocated_give_equal_tokens(
    split: Split, gateway: HandGateway, colocated: HandGateway
) -> None:
    lengths = (1, 2, 16, 17, 24, 25, 49, 150)
    for num_tokens in lengths:
        for params in (GREEDY, SEEDED, replace(GREEDY, max_tokens=1)):
            assert await same_answer(gateway, colocated, prompt(num_tokens), params), num_tokens

    assert await becomes_true(lambda: prefills(split.decode, "remote") == 3 * len(lengths))
    assert prefills(split.decode, "local") == prefills(split.decode, "fallback") == 0
    assert await becomes_true(split.idle)


async def test_the_prefill_worker_finds_prefixes_again_and_the_gateway_hears_of_it(
    split: Split, gateway: HandGateway, colocated: HandGateway
) -> None:
    history = prompt(100)
    for handle, num_found in enumerate((0, 96, 96)):
        plain = await colocated.generate(handle, history, GREEDY)
        answer = await gateway.generate(handle, history, GREEDY, salt=b"tenant")
        assert answer.token_ids == plain.token_ids
        assert answer.num_cached[0] == num_found
        history = [*history, *answer.token_ids, 300, 301]

    assert measure(split.prefill, "gemline_prefix_cache_hit_tokens_total") == 192
    assert await becomes_true(lambda: prefills(split.decode, "remote") == 3)
    assert await becomes_true(split.idle)


@every_transport
async def test_many_at_once_get_what_each_gets_alone(
    split: Split, gateway: HandGateway, colocated: HandGateway
) -> None:
    prompts = [prompt(1 + 9 * i % 130) for i in range(24)]
    alone = [(await colocated.generate(i, token_ids, GREEDY)).token_ids for i, token_ids in enumerate(prompts)]

    together = await asyncio.gather(*(gateway.generate(i, ids, GREEDY) for i, ids in enumerate(prompts)))

    assert [answer.token_ids for answer in together] == alone
    assert await becomes_true(lambda: prefills(split.decode, "remote") == 24)
    assert await becomes_true(split.idle)


async def test_what_travels_is_the_global_layers_and_the_last_window_of_the_local_ones(
    split: Split, gateway: HandGateway, tiny_checkpoint: Path
) -> None:
    config, expected = Gemma2Config.load(tiny_checkpoint), 0
    for handle, num_tokens in enumerate((1, 10, 16, 17, 100)):
        await gateway.generate(handle, prompt(num_tokens), GREEDY)
        expected += TOKEN_BYTES * (num_tokens + min(num_tokens, WINDOW - 1))
        assert sum(stop - start for start, stop in kv_ranges(config, num_tokens)) == num_tokens + min(num_tokens, 15)

    assert measure(split.decode, "gemline_kv_received_bytes_total") == expected
    assert await becomes_true(lambda: measure(split.prefill, "gemline_kv_sent_bytes_total") == expected)
    held = TOKEN_BYTES * config.num_hidden_layers * (1 + 10 + 16 + 17 + 100)
    assert await becomes_true(lambda: measure(split.prefill, "gemline_kv_held_bytes_total") == held)


@every_transport
async def test_how_long_a_transfer_was_waited_for_is_measured(split: Split, gateway: HandGateway) -> None:
    for handle in range(3):
        await gateway.generate(handle, prompt(100), GREEDY)

    assert await becomes_true(lambda: measure(split.decode, "gemline_kv_exposed_seconds_count") == 3)
    assert 0 < measure(split.decode, "gemline_kv_exposed_seconds_sum") < 60


SPOILS = [hand_prefill.die, hand_prefill.stop_early, hand_prefill.damage, hand_prefill.drop, hand_prefill.repeat]


@pytest.mark.parametrize("transport", ["grpc"], indirect=True)
@pytest.mark.parametrize("act", SPOILS, ids=[act.__name__ for act in SPOILS])
async def test_a_stream_spoiled_at_any_frame_costs_nothing_but_time(
    split: Split,
    gateway: HandGateway,
    colocated: HandGateway,
    redis_url: str,
    act: Callable[[bytes, Callable[[bytes], Awaitable[None]], Any], Awaitable[None]],
) -> None:
    num_fallbacks = 0
    for at_frame in count():  # to the end frame; chunks may share frames, so their number varies
        spoiler = Spoiler(split.prefill_record, at_frame, act)
        async with registered(spoiler, redis_url):
            assert await same_answer(gateway, colocated, prompt(100), GREEDY)
        if not spoiler.acted:
            break
        num_fallbacks += 1

    assert num_fallbacks >= 3  # the first frame, one of keys and values at least, the last
    if act is not hand_prefill.repeat:  # an end frame that comes twice comes too late to matter
        assert await becomes_true(lambda: prefills(split.decode, "fallback") == num_fallbacks)
    assert await becomes_true(split.idle)


@pytest.mark.parametrize("transport", ["shm", "socket"], indirect=True)
@pytest.mark.parametrize("act", hand_data.ACTS, ids=[act.__name__ for act in hand_data.ACTS])
async def test_a_data_connection_spoiled_at_any_frame_costs_nothing_but_time(
    split: Split, gateway: HandGateway, colocated: HandGateway, redis_url: str, act: hand_data.DataAct
) -> None:
    num_fallbacks = 0
    for at_frame in count():
        spoiler = Spoiler(split.prefill_record, at_frame, data_act=act)
        async with registered(spoiler, redis_url):
            assert await same_answer(gateway, colocated, prompt(60), GREEDY)
        if not spoiler.acted:
            break
        num_fallbacks += 1

    assert num_fallbacks >= 2  # one frame for each layer, or more when the chunks were slower than the handshake
    if act is not hand_data.repeat:  # a last frame that comes twice comes too late to matter
        assert await becomes_true(lambda: prefills(split.decode, "fallback") == num_fallbacks)
    assert await becomes_true(split.idle)
    assert await becomes_true(lambda: num_mappings() == 0)


@every_transport
async def test_cancelling_during_the_transfer_frees_both_ends(
    split: Split, gateway: HandGateway, redis_url: str
) -> None:
    spoiler = hanging(split)
    async with registered(spoiler, redis_url):
        await gateway.submit(1, prompt(60), GREEDY)
        assert await becomes_true(lambda: spoiler.acted)
        assert not split.idle()

        await gateway.cancel(1)

        assert await becomes_true(split.idle)
        assert await becomes_true(lambda: num_mappings() == 0)
    assert not gateway.answers[1].first.is_set()


async def test_a_gateway_that_goes_away_during_the_transfer_frees_both_ends(split: Split, redis_url: str) -> None:
    spoiler = hanging(split)
    async with registered(spoiler, redis_url):
        async with attached(split.decode_record.address, split.decode_record.epoch) as gateway:
            await gateway.submit(1, prompt(60), GREEDY)
            assert await becomes_true(lambda: spoiler.acted)

        assert await becomes_true(split.idle)


async def test_a_prefill_worker_that_loses_its_lease_during_the_transfer_costs_seconds_not_the_answer(
    split: Split, gateway: HandGateway, colocated: HandGateway, redis_url: str
) -> None:
    spoiler = hanging(split)
    async with served(spoiler) as address:
        async with leased(address, split.prefill_record, redis_url):
            answer = asyncio.create_task(same_answer(gateway, colocated, prompt(60), GREEDY))
            assert await becomes_true(lambda: spoiler.acted)
        assert await answer

    assert prefills(split.decode, "fallback") == 1
    assert await becomes_true(split.idle)


@pytest.mark.parametrize(("transport", "num_bytes"), [("grpc", 9000), ("shm", 300)], indirect=["transport"])
async def test_a_prefill_worker_that_froze_costs_seconds_not_the_answer(
    split: Split, gateway: HandGateway, colocated: HandGateway, redis_url: str, num_bytes: int
) -> None:
    async with (
        frozen_after(split.prefill_record, num_bytes) as address,
        leased(address, split.prefill_record, redis_url) as record,
    ):
        split.prefill_worker.epoch_changed(record.epoch)
        assert await same_answer(gateway, colocated, prompt(100), GREEDY)

    assert prefills(split.decode, "fallback") == 1
    assert await becomes_true(split.idle)


@pytest.mark.parametrize("listening", [False, True])
async def test_a_prefill_worker_that_cannot_be_reached_costs_seconds_not_the_answer(
    split: Split, gateway: HandGateway, colocated: HandGateway, redis_url: str, listening: bool
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        async with leased(f"127.0.0.1:{silent.getsockname()[1]}", split.prefill_record, redis_url):
            assert await same_answer(gateway, colocated, prompt(100), GREEDY)

    assert prefills(split.decode, "fallback") == 1


async def test_requests_wait_for_room_and_all_are_served(split: Split, gateway: HandGateway) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.0)

    answers = await asyncio.gather(*(gateway.generate(handle, prompt(200), params) for handle in range(12)))

    assert {tuple(answer.token_ids) for answer in answers} == {tuple(answers[0].token_ids)}
    assert len(answers[0].token_ids) == 40
    assert await becomes_true(split.idle)


async def test_a_request_that_can_never_be_served_gets_its_error(gateway: HandGateway) -> None:
    answer = await gateway.generate(1, prompt(255), GREEDY)

    assert answer.error == "context_length_exceeded"


async def test_without_a_prefill_worker_the_decode_worker_prefills(
    tiny_checkpoint: Path, redis_url: str, colocated: HandGateway
) -> None:
    telemetry = measuring()
    async with (
        hosted(DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always")), redis_url, telemetry) as record,
        attached(record.address, record.epoch) as gateway,
    ):
        assert await same_answer(gateway, colocated, prompt(60), GREEDY)
        assert prefills(telemetry, "local") == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda card: replace(card, revision="f" * 64),
        lambda card: replace(card, dtype="bfloat16"),
        lambda card: replace(card, quantization="int8"),
        lambda card: replace(card, kv_dtype="float8_e4m3"),
    ],
    ids=["revision", "dtype", "quantization", "kv_dtype"],
)
async def test_a_prefill_worker_with_other_weights_or_another_precision_is_not_asked(
    split: Split, gateway: HandGateway, redis_url: str, changed: Callable[[ModelCard], ModelCard]
) -> None:
    model = changed(split.prefill_record.model)
    stranger = Spoiler(replace(split.prefill_record, model=model))
    async with registered(stranger, redis_url):
        await gateway.generate(1, prompt(20), GREEDY)

    assert stranger.num_calls == 0
    assert await becomes_true(lambda: prefills(split.decode, "remote") == 1)


async def test_a_prefill_worker_that_failed_is_left_alone_for_a_while(
    split: Split, gateway: HandGateway, redis_url: str
) -> None:
    spoiler = Spoiler(split.prefill_record, 0, hand_prefill.die)
    async with registered(spoiler, redis_url):
        for handle in range(4):
            await gateway.generate(handle, prompt(20), GREEDY)

    assert spoiler.num_calls == 1
    assert await becomes_true(lambda: prefills(split.decode, "remote") == 3)
    assert prefills(split.decode, "fallback") == 1
