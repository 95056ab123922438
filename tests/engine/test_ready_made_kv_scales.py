"""Checkpoints that say what keys and values in fp8 are divided by: theirs are used on every rank, as if set by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.ready_made import CONFIG, compressed_config, kv_scheme, kv_tensors, write, write_plain
from support.ready_made_cases import CASES, FOUR_BITS
from support.thread_ranks import ThreadRanks, together

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine
from gemline.engine.events import Logprobs
from gemline.engine.group import follow_with
from gemline.engine.loading import load_model
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.engine.weights import load_weights
from gemline.errors import CheckpointError
from gemline_kernels import reference
from gemline_kernels.scales import Scales

PROMPT = tuple(3 * at % 160 for at in range(40))
SCALES = (Scales(0.0078125, 0.012451171875), Scales(0.02001953125, 0.005))  # as float32 has them, but for one
FP8 = EngineOptions(kv_dtype="fp8", num_kv_blocks=32, max_running=4, num_threads=1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Int4 weights in words, and scales."""
    maker, quantization_config = CASES[FOUR_BITS]
    scheme = quantization_config | {"kv_cache_scheme": kv_scheme()}
    write(tmp_path, maker, scheme, beside=kv_tensors(SCALES, (1,), torch.float32))
    return tmp_path


def near(scales: tuple[Scales, ...], dtype: torch.dtype) -> bool:
    """Whether they are SCALES, rounded to that dtype."""
    return torch.tensor(scales).equal(torch.tensor(SCALES).to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_they_are_read_in_each_form_they_are_stored_in(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    maker, quantization_config = CASES["compressed fp8, one scale"]
    scheme = quantization_config | {"kv_cache_scheme": kv_scheme()}
    meant = write(tmp_path, maker, scheme, beside=kv_tensors(SCALES, shape, dtype))
    assert near(load_model(tmp_path, FP8, reference).options.kv_scales, dtype)
    weights = load_weights(tmp_path, Gemma2Config.load(tmp_path))
    assert set(weights) == set(meant)  # they are none
    assert weights.stored_dtypes == {torch.bfloat16}


def answer(engine: Engine) -> list[tuple[int, Logprobs | None]]:
    engine.add(EngineRequest(1, PROMPT, len(PROMPT), SamplingParams(16, temperature=0.0, num_logprobs=4)))
    found = []
    while engine.has_work:
        found += [(event.token_id, event.logprobs) for event in engine.step().tokens]
    return found


def test_an_engine_answers_as_with_the_same_scales_set_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    """Of the same weights in an ordinary checkpoint; by scales of our own measure it is another answer."""
    plain = write_plain(tmp_path / "plain", write(tmp_path / "same", *CASES[FOUR_BITS]))
    exact = Engine.load(checkpoint, FP8).options.kv_scales
    assert near(exact, torch.float32)
    own = answer(Engine.load(checkpoint, FP8))
    assert own == answer(Engine.load(plain, replace(FP8, kv_scales=exact)))
    assert own != answer(Engine.load(plain, FP8))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_rank_has_them_and_the_answer_is_that_of_the_whole(checkpoint: Path, num_ranks: int) -> None:
    def run(ranks: ThreadRanks) -> list[int]:
        loaded = load_model(checkpoint, replace(FP8, tensor_parallel=num_ranks), reference, ranks)
        assert near(loaded.options.kv_scales, torch.float32)
        if ranks.rank:
            follow_with(loaded, ranks)
            return []
        engine = Engine(loaded.model, loaded.model.config, loaded.options, loaded.revision, loaded.report, ranks)
        try:
            assert near(engine._cache.scales, torch.float32)
            return [token_id for token_id, _ in answer(engine)]
        finally:
            engine.end()

    assert together(num_ranks, run)[0] == [token_id for token_id, _ in answer(Engine.load(checkpoint, FP8))]


def test_weights_may_be_as_they_are_beside_them(tmp_path: Path) -> None:
    weights = write(tmp_path / "same", *CASES[FOUR_BITS])
    plain = write_plain(tmp_path / "plain", weights)
    dense = write_plain(tmp_path / "dense", weights)
    stated = compressed_config("dense") | {"quantization_status": "frozen", "config_groups": {}}
    stated["kv_cache_scheme"] = kv_scheme()
    (dense / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": stated}))
    tensors = {name: tensor.float() for name, tensor in weights.items()}
    save_file(tensors | kv_tensors(SCALES, (1,), torch.bfloat16), dense / "model.safetensors")
    scales = load_model(dense, FP8, reference).options.kv_scales
    assert near(scales, torch.bfloat16)
    assert answer(Engine.load(dense, FP8)) == answer(Engine.load(plain, replace(FP8, kv_scales=scales)))


def test_without_an_fp8_cache_they_change_nothing_and_the_log_says_so(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    auto = replace(FP8, kv_dtype="auto")
    plain = write_plain(tmp_path / "plain", write(tmp_path / "same", *CASES[FOUR_BITS]))
    assert answer(Engine.load(checkpoint, auto)) == answer(Engine.load(plain, auto))
    assert "has scales for keys and values in fp8, which kv_dtype auto ignores" in caplog.text


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("k_scale", None, "1 of 56 tensors are missing, the first is model.layers.1.self_attn.k_scale (1,)"),
        ("v_scale", torch.ones(2), "self_attn.v_scale: has shape (2,), but config.json asks for (1,) or () or (1, 1)"),
        ("v_scale", torch.ones(1).int(), "self_attn.v_scale: stored as 'I32', must be one of F32, BF16, F16"),
        ("k_scale", torch.tensor([torch.nan]), "self_attn.k_scale: must be finite and at least 8e-37, is nan"),
        ("k_scale", torch.tensor([torch.inf]), "self_attn.k_scale: must be finite and at least 8e-37, is inf"),
        ("v_scale", torch.zeros(1), "self_attn.v_scale: must be finite and at least 8e-37, is 0.0"),
        ("v_scale", -torch.ones(1), "self_attn.v_scale: must be finite and at least 8e-37, is -1.0"),
        ("q_scale", torch.ones(1), "tensor 'model.layers.1.self_attn.q_scale': not part of the model"),
    ],
)
def test_what_is_broken_is_refused_by_tensor_with_both_values(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, said: str
) -> None:
    maker, quantization_config = CASES[FOUR_BITS]
    scales = kv_tensors(SCALES, (1,), torch.float32)
    scales.pop(f"model.layers.1.self_attn.{name}", None)
    if tensor is not None:
        scales[f"model.layers.1.self_attn.{name}"] = tensor
    write(tmp_path, maker, quantization_config | {"kv_cache_scheme": kv_scheme()}, beside=scales)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path, FP8, reference)
    assert said in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_scales_that_config_json_does_not_speak_of_are_refused(tmp_path: Path) -> None:
    write(tmp_path, *CASES[FOUR_BITS], beside=kv_tensors(SCALES, (1,), torch.float32))
    with pytest.raises(CheckpointError, match=r"self_attn\.k_scale': not part of the model"):
        load_model(tmp_path, FP8, reference)
