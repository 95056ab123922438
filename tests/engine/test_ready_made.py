"""Checkpoints that others quantised: read to the bit, served like the same weights, refused where they are broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ready_made import (
    Maker,
    Tensors,
    awq,
    awq_config,
    bytes_of,
    compressed_config,
    gptq,
    gptq_config,
    words,
    write,
    write_plain,
)
from torch.testing import assert_close

from gemline.engine.batch import Batch
from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine, EngineRequest
from gemline.engine.kv_cache import KvCache
from gemline.engine.loading import load_model
from gemline.engine.model import Gemma2Model
from gemline.engine.options import EngineOptions, Quantization
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.weights import Weights, load_weights
from gemline.errors import CheckpointError
from gemline_kernels import reference

FLOAT32, BFLOAT16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
OPTIONS = EngineOptions(num_kv_blocks=32, max_running=4)
DOWN = "model.layers.1.mlp.down_proj"


class Case(NamedTuple):
    """A way to store matrices, and how config.json tells it."""

    maker: Maker
    quantization_config: dict[str, Any]


def compressed(bits: int, group_size: int, **how: bool) -> Case:
    scheme: dict[str, Any] = {"num_bits": bits, "strategy": "group", "group_size": group_size}
    if group_size == -1:
        scheme |= {"strategy": "channel", "group_size": None}
    scheme |= {"symmetric": how.get("is_symmetric", True), "actorder": "group" if how.get("is_ordered") else None}
    return Case(words(bits, group_size, **how), compressed_config(**scheme))


def in_bytes(stored: str = "int-quantized", **weights: Any) -> dict[str, Any]:
    return compressed_config(stored, **({"num_bits": 8} | weights))


CASES = {
    "compressed int4, groups of 128": compressed(4, 128),
    "compressed int4, groups of 32": compressed(4, 32),
    "compressed int4, a row": compressed(4, -1),
    "compressed int4, asymmetric": compressed(4, 64, is_symmetric=False),
    "compressed int4, ordered": compressed(4, 64, is_ordered=True),
    "compressed int4, asymmetric and ordered": compressed(4, 128, is_symmetric=False, is_ordered=True),
    "compressed int8 in words, a row": compressed(8, -1),
    "compressed int8 in words, asymmetric": compressed(8, 128, is_symmetric=False),
}
CASES |= {
    "compressed int8, a row": Case(bytes_of(torch.int8), in_bytes(strategy="channel")),
    "compressed int8, asymmetric": Case(
        bytes_of(torch.int8, is_symmetric=False), in_bytes(strategy="channel", symmetric=False)
    ),
    "compressed fp8, a row": Case(bytes_of(FP8), in_bytes("float-quantized", type="float", strategy="channel")),
    "compressed fp8, one scale": Case(bytes_of(FP8, "one"), in_bytes("float-quantized", type="float")),
    "gptq, groups of 128": Case(gptq(128), gptq_config(128)),
    "gptq, a row": Case(gptq(-1), gptq_config(-1)),
    "gptq, asymmetric": Case(gptq(64, is_symmetric=False), gptq_config(64, sym=False)),
    "gptq, asymmetric, nothing below zero": Case(
        lambda weight_NK, random: gptq(64, is_symmetric=False)(weight_NK.abs(), random), gptq_config(64, sym=False)
    ),
    "gptq, ordered": Case(gptq(32, is_ordered=True), gptq_config(32, desc_act=True)),
    "gptq, asymmetric and ordered": Case(
        gptq(128, is_symmetric=False, is_ordered=True), gptq_config(128, sym=False, desc_act=True)
    ),
    "gptq, version 2": Case(gptq(128, version=2), gptq_config(128, checkpoint_format="gptq_v2")),
    "gptq, version 2, asymmetric": Case(
        gptq(32, is_symmetric=False, version=2), gptq_config(32, sym=False, checkpoint_format="gptq_v2")
    ),
    "awq, groups of 128": Case(awq(128), awq_config(128)),
    "awq, groups of 32": Case(awq(32), awq_config(32)),
    "awq, a row": Case(awq(-1), awq_config(-1)),
}
FOUR_BITS = "compressed int4, groups of 128"


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
    cache = KvCache(config, 2, 2, 32, dtype)
    tokens, slots, table = torch.arange(40) * 3 % 160, torch.arange(40), torch.tensor([[0, 1]])
    batch = Batch(
        token_ids_T=tokens,
        positions_T=torch.arange(40),
        global_slots_T=slots,
        local_slots_T=slots,
        global_table_BP=table,
        local_table_BP=table,
        query_start=torch.tensor([0, 40]),
        context_len=torch.tensor([40]),
        sample_rows=torch.arange(40),
    )
    return model.forward(batch, cache)


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


def change(directory: Path, alter: Callable[[Tensors], object]) -> str:
    """What loading says after that change to the tensors: all of it, for values are checked as they are read."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    alter(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, OPTIONS, reference)
    return caught.value.message


Alter = Callable[[Tensors], object]


def without(suffix: str) -> Alter:
    return lambda tensors: tensors.pop(f"{DOWN}.{suffix}")


def replaced(suffix: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Alter:
    return lambda tensors: tensors.update({f"{DOWN}.{suffix}": make(tensors[f"{DOWN}.{suffix}"])})


def added(suffix: str, tensor: torch.Tensor) -> Alter:
    return lambda tensors: tensors.update({f"{DOWN}.{suffix}": tensor})


def spoilt(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[1] = number
        return tensor

    return make


GPTQ, AWQ = "gptq, groups of 128", "awq, groups of 128"
ORDERED = "compressed int4, asymmetric and ordered"
BROKEN: list[tuple[str, Alter, str]] = [
    (
        FOUR_BITS,
        without("weight_scale"),
        "are missing, the first is model.layers.1.mlp.down_proj.weight_scale (128, 3)",
    ),
    (FOUR_BITS, without("weight_packed"), f"the first is {DOWN}.weight (128, 384)"),
    (FOUR_BITS, without("weight_shape"), "down_proj.weight_shape (2,)"),
    (ORDERED, without("weight_zero_point"), "down_proj.weight_zero_point (16, 3)"),
    (ORDERED, without("weight_g_idx"), "down_proj.weight_g_idx (384,)"),
    (FOUR_BITS, added("weight", torch.zeros(128, 384)), f"tensor '{DOWN}.weight': not part of the model"),
    (FOUR_BITS, added("weight_zero_point", torch.zeros(16, 3)), f"'{DOWN}.weight_zero_point': not part of the model"),
    (
        FOUR_BITS,
        replaced("weight_packed", lambda it: it[:, :-1]),
        f"tensor {DOWN}.weight_packed: has shape (128, 47), but config.json asks for (128, 48)",
    ),
    (
        FOUR_BITS,
        replaced("weight_scale", lambda it: it[:, :1]),
        f"tensor {DOWN}.weight_scale: has shape (128, 1), but config.json asks for (128, 3)",
    ),
    (
        FOUR_BITS,
        replaced("weight_packed", lambda it: it.float()),
        f"tensor {DOWN}.weight_packed: stored as 'F32', must be one of I32",
    ),
    (
        FOUR_BITS,
        replaced("weight_scale", lambda it: it.to(torch.int32)),
        f"tensor {DOWN}.weight_scale: stored as 'I32', must be one of F32, BF16, F16",
    ),
    (
        FOUR_BITS,
        replaced("weight_shape", spoilt(385)),
        f"tensor {DOWN}.weight_shape: is [128, 385], but config.json asks for [128, 384]",
    ),
    (
        FOUR_BITS,
        replaced("weight_scale", spoilt(torch.nan)),
        f"{DOWN}.weight_scale: 1 scales are not finite",
    ),
    (ORDERED, replaced("weight_g_idx", spoilt(3)), f"tensor {DOWN}.weight_g_idx: names group 3, but there are 3"),
    (GPTQ, without("qzeros"), f"the first is {DOWN}.qzeros (3, 16)"),
    (GPTQ, without("qweight"), f"the first is {DOWN}.weight (128, 384)"),
    ("gptq, ordered", without("g_idx"), f"the first is {DOWN}.g_idx (384,)"),
    (
        GPTQ,
        replaced("qweight", lambda it: it[:-1]),
        f"{DOWN}.qweight: has shape (47, 128), but config.json asks",
    ),
    (
        GPTQ,
        replaced("scales", lambda it: it[:1]),
        f"{DOWN}.scales: has shape (1, 128), but config.json asks",
    ),
    (GPTQ, replaced("g_idx", spoilt(3)), f"tensor {DOWN}.g_idx: names group 3, but there are 3"),
    (GPTQ, replaced("scales", spoilt(torch.inf)), f"tensor {DOWN}.scales: 1 scales are not finite"),
    (
        GPTQ,
        replaced("qzeros", spoilt(0x77787777)),
        f"tensor {DOWN}.qzeros: gives the zero 9 by checkpoint_format gptq, but with sym all must be 8",
    ),
    (
        AWQ,
        replaced("qweight", lambda it: it[:, 1:]),
        f"{DOWN}.qweight: has shape (384, 15), but config.json asks",
    ),
    (AWQ, replaced("qzeros", lambda it: it.long()), f"tensor {DOWN}.qzeros: stored as 'I64', must be one of I32"),
    (AWQ, added("g_idx", torch.zeros(384).int()), f"'{DOWN}.g_idx': not part of the model"),
    (
        "compressed fp8, a row",
        replaced("weight", lambda it: it.float()),
        f"tensor {DOWN}.weight: stored as 'F32', must be one of F8_E4M3",
    ),
    (ORDERED, replaced("weight_g_idx", spoilt(-1)), f"tensor {DOWN}.weight_g_idx: names group -1, but there are 3"),
]


@pytest.mark.parametrize(("name", "alter", "said"), BROKEN)
def test_what_is_broken_is_refused_by_file_and_tensor_with_both_values(
    tmp_path: Path, name: str, alter: Alter, said: str
) -> None:
    write(tmp_path, *CASES[name])
    message = change(tmp_path, alter)
    assert said in message
    assert str(tmp_path) in message


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *CASES[FOUR_BITS])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the tensors take the bytes"):
        load(tmp_path)


def test_integers_are_refused_where_config_json_says_nothing_of_them(tmp_path: Path) -> None:
    write_plain(tmp_path, write(tmp_path / "packed", *CASES[FOUR_BITS]))
    message = change(tmp_path, replaced("weight", lambda it: it.to(torch.int32)))
    assert f"tensor {DOWN}.weight: stored as 'I32', must be one of F32, BF16, F16" in message


def other(**values: Any) -> dict[str, Any]:
    return compressed_config(num_bits=4, group_size=128) | values


def scheme(**values: Any) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": 4, "strategy": "group", "group_size": 128} | values
    return compressed_config(**weights)


TWO_GROUPS = {
    "group_0": compressed_config(num_bits=4, group_size=128)["config_groups"]["group_0"],
    "group_1": compressed_config(num_bits=8, group_size=128)["config_groups"]["group_0"],
}
UNREAD: list[tuple[dict[str, Any], str]] = [
    (
        {"quant_method": "bitsandbytes"},
        "gptq and awq are read, this is 'bitsandbytes'",
    ),
    ({"quant_method": 4}, "quant_method: must be a string, is 4"),
    (
        other(format="nvfp4-pack-quantized"),
        "must be one of pack-quantized, int-quantized, float-quantized, is 'nvfp4",
    ),
    (
        other(format="marlin-24"),
        "int-quantized, float-quantized, is 'marlin-24'",
    ),
    (other(quantization_status="frozen"), "quantization_status: must be 'compressed', is 'frozen'"),
    (other(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format: must be 'dense', is 'sparse-24-"),
    (other(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme: is not supported, is {'num_bits': 8}"),
    (other(transform_config={"R1": {}}), "transform_config: is not supported"),
    (other(config_groups={}), "config_groups: must give one form of weights, gives none"),
    (
        other(config_groups=TWO_GROUPS),
        "group_0: compressed-tensors, packed int4, groups of 128, symmetric; group_1: ",
    ),
    (other(config_groups={"W4A16": ["Linear"]}), "config_groups.W4A16: must be an object, is ['Linear']"),
    (scheme(num_bits=3), "config_groups.group_0.weights.num_bits: must be 4 or 8 in 'pack-quantized', is 3"),
    (
        scheme(type="float"),
        "weights.type: does not go with the format 'pack-quantized', is 'float'",
    ),
    (scheme(strategy="block"), "config_groups.group_0.weights.strategy: is not supported in 'pack-quantized': 'block'"),
    (scheme(group_size=0), "config_groups.group_0.weights.group_size: must be -1 or over 0"),
    (scheme(group_size=-2), "config_groups.group_0.weights.group_size: must be an integer from -1 to 16777215, is -2"),
    (gptq_config(128, bits=8), "bits: must be 4, is 8"),
    (gptq_config(0), "group_size: must be -1 or over 0"),
    (gptq_config(128, checkpoint_format="marlin"), "checkpoint_format: must be 'gptq' or 'gptq_v2', is 'marlin'"),
    (gptq_config(128, is_marlin_format=True), "checkpoint_format: must be 'gptq' or 'gptq_v2'"),
    (gptq_config(128, desc_act="yes"), "desc_act: must be true or false, is 'yes'"),
    (awq_config(128, bits=3), "bits: must be 4, is 3"),
    (awq_config(128, version="gemv"), "version: must be 'gemm', is 'gemv'"),
    (awq_config(128, zero_point=False), "zero_point: must be true"),
    (in_bytes("float-quantized", type="float", strategy="block"), "is not supported in 'float-quantized': 'block'"),
    (in_bytes("float-quantized", type="float", symmetric=False), "symmetric: must be true of float values"),
    (scheme(actorder="sideways"), "weights.actorder: must be one of group, weight, is 'sideways'"),
]


@pytest.mark.parametrize(("quantization_config", "said"), UNREAD)
def test_a_layout_that_is_not_read_is_refused_by_file_key_and_value(
    tmp_path: Path, quantization_config: dict[str, Any], said: str
) -> None:
    write(tmp_path, *CASES[FOUR_BITS])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization_config}))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path, OPTIONS, reference)
    assert f"{tmp_path / 'config.json'}: quantization_config." in caught.value.message
    assert said in caught.value.message
