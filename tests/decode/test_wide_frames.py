"""Frames large enough to be checked outside the event loop, in both dtypes: split and colocated still agree."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.hand_gateway import Answer, attached
from support.noise_model.checkpoint import TINY, make_checkpoint
from support.workers import hosted, measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker, KvWireDtype
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.transfer.transports import KvTransportSetting

WIDE = replace(TINY, name="wide", head_dim=128, sliding_window=200, max_position_embeddings=512)
NUM_TOKENS = 450
NUM_POSITIONS = NUM_TOKENS + WIDE.sliding_window - 1  # of a global layer and a local one
PROMPT = [2, *(300 + 7 * i % 400 for i in range(1, NUM_TOKENS))]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, num_logprobs=2)


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wide")
    make_checkpoint(target, WIDE)
    return target


@dataclass(frozen=True)
class Outcome:
    """The answers of two workers apart and of one alone, and what the former took to travel."""

    split: Answer
    colocated: Answer
    received_bytes: float


async def answers(
    checkpoint: Path, redis_url: str, dtype: str, transport: KvTransportSetting, wire: KvWireDtype = "auto"
) -> Outcome:
    engine = EngineOptions(dtype=dtype, num_kv_blocks=64, max_batch_tokens=512, num_threads=1)
    options = DecodeOptions(checkpoint, "wide", engine, "always", transport, wire)
    telemetry = measuring()
    async with (
        hosted(PrefillWorker(PrefillOptions(checkpoint, "wide", engine)), redis_url),
        hosted(DecodeWorker(options), redis_url, telemetry) as split,
        hosted(DecodeWorker(DecodeOptions(checkpoint, "wide", engine, "never")), redis_url) as colocated,
        attached(split.address, split.epoch) as ours,
        attached(colocated.address, colocated.epoch) as theirs,
    ):
        one, other = await ours.generate(1, PROMPT, GREEDY), await theirs.generate(1, PROMPT, GREEDY)
        return Outcome(one, other, measure(telemetry, "gemline_kv_received_bytes_total", transport=transport))


@pytest.mark.parametrize("transport", ["shm", "socket", "grpc"])
@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2)])
async def test_large_frames_carry_the_same_answer(
    wide_checkpoint: Path, redis_url: str, dtype: str, item_bytes: int, transport: KvTransportSetting
) -> None:
    outcome = await answers(wide_checkpoint, redis_url, dtype, transport)

    assert (outcome.split.token_ids, outcome.split.logprobs) == (
        outcome.colocated.token_ids,
        outcome.colocated.logprobs,
    )
    assert outcome.received_bytes == NUM_POSITIONS * 2 * 2 * WIDE.head_dim * item_bytes


@pytest.mark.parametrize("transport", ["shm", "grpc"])
async def test_float8_on_the_way_halves_the_bytes_of_bfloat16_and_hardly_moves_the_logprobs(
    wide_checkpoint: Path, redis_url: str, transport: KvTransportSetting
) -> None:
    outcome = await answers(wide_checkpoint, redis_url, "bfloat16", transport, "float8_e4m3")

    assert outcome.received_bytes == NUM_POSITIONS * 2 * 2 * WIDE.head_dim
    assert outcome.split.logprobs[0] == outcome.colocated.logprobs[0]  # the first token never travelled as float8
    (ours, our_values), (theirs, their_values) = outcome.split.logprobs[1], outcome.colocated.logprobs[1]
    assert ours[0] == theirs[0]
    assert our_values[0] == pytest.approx(their_values[0], abs=0.1)
