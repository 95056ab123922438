"""Checkpoints that others quantised and that are broken, or in a layout that is not read: refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ready_made import (
    Tensors,
    awq_config,
    compressed_config,
    gptq_config,
    kv_scheme,
    write,
    write_plain,
)
from support.ready_made_cases import CASES, FOUR_BITS, in_bytes

from gemline.engine.loading import load_model
from gemline.engine.options import EngineOptions
from gemline.errors import CheckpointError
from gemline_kernels import reference

OPTIONS = EngineOptions(num_kv_blocks=32, max_running=4)
DOWN = "model.layers.1.mlp.down_proj"
FP8 = torch.float8_e4m3fn


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
        load_model(tmp_path, OPTIONS, reference)


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
    (other(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme.type: must be 'float', is 'int'"),
    (other(kv_cache_scheme=kv_scheme(num_bits=4)), "kv_cache_scheme.num_bits: must be 8, is 4"),
    (
        other(kv_cache_scheme=kv_scheme(strategy="attn_head")),
        "strategy: must be 'tensor', is 'attn_head'",
    ),
    (other(kv_cache_scheme=kv_scheme(strategy=None, group_size=32)), "strategy: must be 'tensor', is 'group'"),
    (other(kv_cache_scheme=kv_scheme(dynamic=True)), "dynamic: must be false, as scales are stored, is True"),
    (other(kv_cache_scheme=kv_scheme(symmetric=False)), "kv_cache_scheme.symmetric: must be true of float values"),
    (other(kv_cache_scheme="fp8"), "kv_cache_scheme: must be an object, is 'fp8'"),
    (other(format="dense", config_groups={}), "float-quantized, is 'dense'"),
    (other(format="dense", kv_cache_scheme=kv_scheme()), "float-quantized, is 'dense'"),
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
