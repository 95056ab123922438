"""An fp8 cache in an engine: its scales, what it costs in accuracy, and that all ranks and workers have the same."""

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.divided import CONFIG, OPTIONS, divided_engine, parts_of, weights_of, whole_engine
from support.thread_ranks import ThreadRanks, together

from gemline.demo.shipped import SHIPPED
from gemline.engine.config import LayerKind
from gemline.engine.engine import Engine
from gemline.engine.kv_scales import HEADROOM, measure_scales, scale_of
from gemline.engine.model import Gemma2Model
from gemline.engine.options import EngineOptions, KvDtype
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.requests import EngineRequest
from gemline.errors import CheckpointError
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer
from gemline_kernels import reference
from gemline_kernels.scales import Scales

FP8 = replace(OPTIONS, kv_dtype="fp8")
PROMPT = tuple(7 * at % 330 for at in range(37))
QUESTIONS = ("Hello! Who are you?", "What is 3 plus 4?", "What is the capital of France?", "Say: one two three", "Why?")


@given(st.floats(1e-30, 1e30))
def test_a_scale_is_a_power_of_two_that_leaves_the_headroom_and_no_more_than_a_bit_beyond(largest: float) -> None:
    scale = scale_of(largest)
    assert math.frexp(scale)[0] == 0.5
    assert 448 / 2 < largest * HEADROOM / scale <= 448 * (1 + 1e-12)


def test_of_nothing_the_scale_is_1_and_of_next_to_nothing_one_that_float32_can_divide_by() -> None:
    assert scale_of(0.0) == 1.0
    assert torch.tensor(1.0 / scale_of(1e-45)).isfinite()
    assert torch.tensor(1.0 / scale_of(3e38)) > 0


def test_scales_are_each_layer_s_own_and_fit_what_a_prompt_writes() -> None:
    weights = weights_of(CONFIG)
    weights["model.layers.2.self_attn.v_proj.weight"] *= 64.0
    model = Gemma2Model(CONFIG, weights, torch.float32, reference)
    options = OPTIONS.for_device("cpu")
    scales = measure_scales(model, CONFIG, options, None)
    assert scales == measure_scales(model, CONFIG, options, None)
    plain = measure_scales(Gemma2Model(CONFIG, weights_of(CONFIG), torch.float32, reference), CONFIG, options, None)
    assert scales[2].values == pytest.approx(64 * plain[2].values, rel=0.51)
    assert scales[:2] == plain[:2]
    assert scales[2].keys == plain[2].keys


@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_keys_or_values_that_are_not_finite_are_refused_by_layer(name: str) -> None:
    weights = weights_of(CONFIG)
    weights[f"model.layers.1.self_attn.{name}.bias"][3] = math.inf
    model = Gemma2Model(CONFIG, weights, torch.float32, reference)
    with pytest.raises(CheckpointError, match="keys or values of layer 1 are not finite: no fp8 cache can hold them"):
        measure_scales(model, CONFIG, OPTIONS.for_device("cpu"), None)


def greedy(engine: Engine) -> list[int]:
    engine.add(EngineRequest(1, PROMPT, len(PROMPT), SamplingParams(12, temperature=0.0)))
    answer = []
    while engine.has_work:
        answer += [event.token_id for event in engine.step().tokens]
    return answer


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_have_the_scales_and_the_answer_of_the_whole(num_ranks: int) -> None:
    config = replace(CONFIG, num_key_value_heads=4)

    def use(engine: Engine) -> tuple[list[int], object]:
        return greedy(engine), engine._cache.scales

    whole = whole_engine(config, FP8)
    assert divided_engine(num_ranks, config, use, FP8) == use(whole)


def test_ranks_agree_by_the_largest_though_one_alone_has_it() -> None:
    config, options = replace(CONFIG, num_key_value_heads=4), OPTIONS.for_device("cpu")
    weights = weights_of(config)
    weights["model.layers.1.self_attn.v_proj.weight"][2 * 16 : 3 * 16] *= 100.0

    def run(ranks: ThreadRanks) -> tuple[Scales, ...]:
        part = Part(config, ranks.rank, ranks.size)
        model = Gemma2Model(config, parts_of(weights, part), torch.float32, reference, ranks=ranks)
        return measure_scales(model, part.own_config, options, ranks)

    whole = measure_scales(Gemma2Model(config, weights, torch.float32, reference), config, options, None)
    assert whole[1].values > 16 * whole[0].values
    assert together(4, run) == [whole] * 4


class Said(NamedTuple):
    tokens: list[int]
    logprobs: list[float]


@cache
def answers(dtype: str, kv_dtype: KvDtype) -> tuple[dict[int, Said], int]:
    """The demo model's, and the bytes of a token's keys and values."""
    options = EngineOptions(dtype=dtype, kv_dtype=kv_dtype, num_kv_blocks=200, num_threads=1)
    engine, tokenizer = Engine.load(SHIPPED, options), Tokenizer.load(SHIPPED)
    found: dict[int, Said] = {}
    for number, text in enumerate(QUESTIONS):
        ids = tuple(tokenizer.encode_chat([Turn("user", text)]))
        engine.add(EngineRequest(number, ids, len(ids), SamplingParams(24, temperature=0.0, num_logprobs=0)))
        found[number] = Said([], [])
    while engine.has_work:
        for event in engine.step().tokens:
            assert event.logprobs is not None
            found[event.seq_id].tokens.append(event.token_id)
            found[event.seq_id].logprobs.append(event.logprobs.values[0])
    return found, engine.token_bytes(LayerKind.GLOBAL) + engine.token_bytes(LayerKind.LOCAL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_demo_model_says_the_same_and_is_as_sure_of_it(dtype: str) -> None:
    """Greedy tokens, as long as they agree: log-probabilities within 0.2; nearly all answers to the end."""
    exact, narrow = answers(dtype, "auto")[0], answers(dtype, "fp8")[0]
    num_same = 0
    for number, wide in exact.items():
        pairs = zip(wide.tokens, narrow[number].tokens, strict=True)
        same = next((at for at, (one, other) in enumerate(pairs) if one != other), len(wide.tokens))
        num_same += same == len(wide.tokens)
        for one, other in zip(wide.logprobs[:same], narrow[number].logprobs[:same], strict=True):
            assert abs(one - other) < 0.2
    assert num_same >= len(QUESTIONS) - 1
    assert narrow != exact  # it is another cache


def test_a_token_takes_half_of_bfloat16_s_bytes_and_a_quarter_of_float32_s() -> None:
    of_float32, of_bfloat16, of_fp8 = (
        answers(dtype, kv_dtype)[1]
        for dtype, kv_dtype in (("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "fp8"))
    )
    assert of_float32 == 2 * of_bfloat16 == 4 * of_fp8
