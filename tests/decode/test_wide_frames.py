"""Frames large enough to be checked outside the event loop, in both dtypes: split and colocated still agree."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.hand_gateway import attached
from support.workers import hosted, measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.demo.checkpoint import TINY, make_checkpoint
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.prefill.worker import PrefillOptions, PrefillWorker

WIDE = replace(TINY, name="wide", head_dim=128, sliding_window=200, max_position_embeddings=512)
NUM_TOKENS = 450
PROMPT = [2, *(300 + 7 * i % 400 for i in range(1, NUM_TOKENS))]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, num_logprobs=2)


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wide")
    make_checkpoint(target, WIDE)
    return target


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("bfloat16", 2)])
async def test_large_frames_carry_the_same_answer(
    wide_checkpoint: Path, redis_url: str, dtype: str, item_bytes: int
) -> None:
    engine = EngineOptions(dtype=dtype, num_kv_blocks=64, max_batch_tokens=512, num_threads=1)
    telemetry = measuring()
    async with (
        hosted(PrefillWorker(PrefillOptions(wide_checkpoint, "wide", engine)), redis_url),
        hosted(DecodeWorker(DecodeOptions(wide_checkpoint, "wide", engine)), redis_url, telemetry) as split,
        hosted(DecodeWorker(DecodeOptions(wide_checkpoint, "wide", engine, "local")), redis_url) as colocated,
        attached(split.address, split.epoch) as ours,
        attached(colocated.address, colocated.epoch) as theirs,
    ):
        one, other = await ours.generate(1, PROMPT, GREEDY), await theirs.generate(1, PROMPT, GREEDY)
        received_bytes = measure(telemetry, "gemline_kv_received_bytes_total")

    assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
    assert received_bytes == (NUM_TOKENS + WIDE.sliding_window - 1) * 2 * 2 * WIDE.head_dim * item_bytes
