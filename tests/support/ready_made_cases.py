"""The ways to store matrices that checkpoints are tried in, by name, each with how config.json tells it."""

from typing import Any, NamedTuple

import torch
from support.ready_made import Maker, awq, awq_config, bytes_of, compressed_config, gptq, gptq_config, words

FP8 = torch.float8_e4m3fn


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
