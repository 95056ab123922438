"""Checkpoints that others quantised: read to the bit, and served like the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ready_made import (
    gptq,
    gptq_config,
    write,
    write_plain,
)
from support.ready_made_cases import CASES, FOUR_BITS
from support.solo import Solo
from torch.testing import assert_close

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine, EngineRequest
from gemline.engine.loading import load_model
from gemline.engine.model import Gemma2Model
from gemline.engine.options import EngineOptions, Quantization
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.weights import Weights, load_weights
from gemline_kernels import reference

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
OPTIONS = EngineOptions(num_kv_blocks=32, max_running=4)
DOWN = "model.layers.1.mlp.down_proj"


def load(directory: Path, part: tuple[int, int] | None = None) -> Weights:
    config = Gemma2Config.load(directory)
    return load_weights(directory, config, "none", None if part is None else Part(config, *part))


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_read_as_it_was_meant(tmp_path: Path, name: str) -> None:
    meant = write(tmp_path, *CASES[name])
    read = load(tmp_path)
    assert set(read) == set(meant)
    assert read.num_parameters == sum(tensor.numel() for tensor in meant.values())
    assert read.stored_dtypes == {torch.bfloat16}
    for weight, tensor in meant.items():
        assert read[weight].equal(tensor), weight


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_each_rank_reads_its_slices(tmp_path: Path, name: str, num_ranks: int) -> None:
    """Also where they begin within a word of the stored tensors."""
    meant = write(tmp_path, *CASES[name])
    config = Gemma2Config.load(tmp_path)
    for rank in range(num_ranks):
        part, read = Part(config, rank, num_ranks), load(tmp_path, (rank, num_ranks))
        for weight, tensor in meant.items():
            assert read[weight].equal(tensor[part.cut(weight)]), weight


def test_a_slice_may_begin_and_end_within_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, case in CASES.items():
        meant = write(tmp_path / name, *case)
        monkeypatch.setattr(Part, "cut", lambda self, name: (slice(3, 61), slice(5, 67)) if "_proj" in name else ())
        read = load(tmp_path / name, (0, 2))
        for weight, tensor in meant.items():
            expected = tensor[3:61, 5:67] if "_proj" in weight else tensor
            assert read[weight].equal(expected), (name, weight)


def logits(directory: Path, dtype: torch.dtype, quantization: Quantization) -> torch.Tensor:
    config = Gemma2Config.load(directory)
    model = Gemma2Model(config, load_weights(directory, config, quantization), dtype, reference, quantization)
    return Solo(model, 40).forward([3 * at % 160 for at in range(40)])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "quantization"), [(FLOAT32, "none"), (BFLOAT16, "none"), (FLOAT32, "int8"), (BFLOAT16, "fp8")]
)
def test_it_computes_what_the_same_weights_do_in_an_ordinary_checkpoint(
    tmp_path: Path, name: str, dtype: torch.dtype, quantization: Quantization
) -> None:
    meant = write(tmp_path / "packed", *CASES[name])
    write_plain(tmp_path / "plain", meant)
    packed, plain = (logits(tmp_path / kind, dtype, quantization) for kind in ("packed", "plain"))
    assert packed.isfinite().all()
    assert packed.std() > 0.1
    assert packed.equal(plain)


@pytest.mark.parametrize("name", CASES)
def test_an_engine_gives_the_same_tokens_likeliest_or_drawn(
    tmp_path: Path, name: str, greedy: Callable[..., EngineRequest], drain: Callable[[Engine], dict[int, list[int]]]
) -> None:
    write_plain(tmp_path / "plain", write(tmp_path / "packed", *CASES[name]))
    answers = []
    for kind in ("packed", "plain"):
        engine = Engine.load(tmp_path / kind, OPTIONS)
        engine.add(greedy(1, [2, 5, 7, 11, 80], 24))
        drawn = SamplingParams(max_tokens=24, temperature=1.0, seed=5)
        engine.add(EngineRequest(2, (2, 5, 7, 11, 80), 5, drawn))
        answers.append(drain(engine))
    assert answers[0] == answers[1]
    assert len(set(answers[0][2])) > 8


KEPT = {
    "compressed int4, groups of 128": 0.0,
    "compressed int4, a row": 0.0,
    "gptq, groups of 128": 2**-8,  # its scales are float16
    "gptq, a row": 2**-8,
    "gptq, version 2": 2**-8,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_int4_that_we_can_hold_is_kept_value_by_value(tmp_path: Path, name: str, num_ranks: int) -> None:
    meant = write(tmp_path, *CASES[name])
    config = Gemma2Config.load(tmp_path)
    kept = 0
    for rank in range(num_ranks):
        part = Part(config, rank, num_ranks)
        read = load_weights(tmp_path, config, "int4", part)
        for weight, tensor in meant.items():
            if (groups := read.int4_groups(weight)) is not None:
                expected = tensor[part.cut(weight)]
                assert_close(groups.dequantized(), expected, rtol=KEPT[name] * 1.001, atol=0)
                kept += 1
    assert (kept > 0) == (name in KEPT)
    assert load(tmp_path).int4_groups(f"{DOWN}.weight") is None  # as it is not to be int4


def test_groups_out_of_order_are_not_kept_though_config_json_says_nothing_of_it(tmp_path: Path) -> None:
    meant = write(tmp_path, gptq(128, is_ordered=True), gptq_config(128))
    read = load_weights(tmp_path, Gemma2Config.load(tmp_path), "int4")
    assert read.int4_groups(f"{DOWN}.weight") is None
    assert read[f"{DOWN}.weight"].equal(meant[f"{DOWN}.weight"])


@pytest.mark.parametrize("name", KEPT)
def test_a_model_in_int4_is_made_of_them(tmp_path: Path, name: str) -> None:
    meant = write(tmp_path, *CASES[name])
    config = Gemma2Config.load(tmp_path)
    weights = load_weights(tmp_path, config, "int4")
    layer = Gemma2Model(config, weights, BFLOAT16, reference, "int4").weights.stack.layers[1]
    prefix = "model.layers.1."
    query_key_value = torch.cat([meant[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"])
    packed: Any = layer  # the reference's own classes, whose weights can be looked at
    for actual, expected in (
        (packed.query_key_value.weight, query_key_value),
        (packed.attention_out.weight, meant[f"{prefix}self_attn.o_proj.weight"]),
        (packed.gate_up.gate.weight, meant[f"{prefix}mlp.gate_proj.weight"]),
        (packed.gate_up.up.weight, meant[f"{prefix}mlp.up_proj.weight"]),
        (packed.down.weight, meant[f"{DOWN}.weight"]),
    ):
        assert_close(actual.dequantized(), expected, rtol=KEPT[name] * 1.001, atol=0)
    assert "14 kept, scales rounded to bfloat16 (off by 0" in str(weights.repacking)


@pytest.mark.parametrize(
    ("name", "quantization", "said"),
    [
        (FOUR_BITS, "none", "compressed-tensors, packed int4, groups of 128, symmetric: 14 matrices dequantized"),
        (FOUR_BITS, "int4", "14 kept, scales rounded to bfloat16 (off by 0 % at most, model.layers"),
        (FOUR_BITS, "int8", "14 quantized anew to int8 (off by 0."),
        ("awq, groups of 128", "int4", "AWQ int4, groups of 128, asymmetric: 14 quantized anew to int4 (off by "),
    ],
)
def test_the_log_tells_what_became_of_them_and_how_far_off_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, quantization: Quantization, said: str
) -> None:
    caplog.set_level("INFO")
    write(tmp_path, *CASES[name])
    load_model(tmp_path, EngineOptions(num_kv_blocks=32, quantization=quantization))
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_modules_that_were_left_as_they_are_are_read_so(tmp_path: Path) -> None:
    meant = write(tmp_path, *CASES[FOUR_BITS], plain=("layers.0.", "k_proj"))
    read = load(tmp_path)
    assert read["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert all(read[name].equal(tensor) for name, tensor in meant.items())
