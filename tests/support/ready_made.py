"""Writes checkpoints in the layouts that people have, from those layouts' definitions. Knows no reader of ours.

Every maker gives a module's tensors and the weight that they stand for, float32.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 160,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
}
Tensors = dict[str, torch.Tensor]


class Stored(NamedTuple):
    """A module's tensors by their names without it, and what they say."""

    tensors: Tensors
    weight_NK: torch.Tensor


Maker = Callable[[torch.Tensor, torch.Generator], Stored]


class Codes(NamedTuple):
    """weight[n, k] = (codes[n, k] - zero[n, group[k]]) * scale[n, group[k]], with integers of `bits` from 0 on."""

    codes_NK: torch.Tensor
    zero_NJ: torch.Tensor
    scale_NJ: torch.Tensor
    group_K: torch.Tensor

    @property
    def weight_NK(self) -> torch.Tensor:
        """In float64, then rounded."""
        zero_NK, scale_NK = self.zero_NJ.double()[:, self.group_K], self.scale_NJ.double()[:, self.group_K]
        return ((self.codes_NK.double() - zero_NK) * scale_NK).float()


def coded(weight_NK: torch.Tensor, bits: int, group_K: torch.Tensor, dtype: torch.dtype, is_symmetric: bool) -> Codes:
    """Each group of each row by its least and its largest value, rounded."""
    top, middle = (1 << bits) - 1, 1 << bits - 1
    shape = (len(weight_NK), int(group_K.max()) + 1)
    zero_NJ, scale_NJ = torch.full(shape, middle), torch.ones(shape, dtype=dtype)
    codes_NK = torch.zeros(weight_NK.shape, dtype=torch.int64)
    for group in range(shape[1]):
        part = weight_NK[:, group_K == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        span = 2 * part.abs().amax(1) if is_symmetric else high - low
        scale_NJ[:, group] = (span / top).to(dtype)
        step = scale_NJ[:, group, None].float()
        if not is_symmetric:
            zero_NJ[:, group] = (-low / step[:, 0]).round().clamp(0, top).long()
        codes_NK[:, group_K == group] = ((part / step).round().long() + zero_NJ[:, group, None]).clamp(0, top)
    return Codes(codes_NK, zero_NJ, scale_NJ, group_K)


def neighbours(num_inputs: int, group_size: int) -> torch.Tensor:
    """group_K; -1: one group."""
    return torch.arange(num_inputs) // (num_inputs if group_size == -1 else group_size)


def packed(codes_RC: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Along the columns: bits [bits * i, bits * (i + 1)) of word w hold column w * per_word + order[i]."""
    per_word = 32 // bits
    shifts = torch.tensor([bits * (order or range(per_word)).index(at) for at in range(per_word)])
    filled_RC = pad(codes_RC.long(), (0, -codes_RC.shape[1] % per_word))
    words_RW: torch.Tensor = (filled_RC.view(len(codes_RC), -1, per_word) << shifts).sum(-1)
    words_RW[words_RW >= 1 << 31] -= 1 << 32
    return words_RW.to(torch.int32)


def words(bits: int, group_size: int, *, is_symmetric: bool = True, is_ordered: bool = False) -> Maker:
    """compressed-tensors' pack-quantized."""

    def make(weight_NK: torch.Tensor, random: torch.Generator) -> Stored:
        group_K = neighbours(weight_NK.shape[1], group_size)
        if is_ordered:
            group_K = group_K[torch.randperm(len(group_K), generator=random)]
        it = coded(weight_NK, bits, group_K, torch.bfloat16, is_symmetric)
        tensors = {
            "weight_packed": packed(it.codes_NK, bits),
            "weight_scale": it.scale_NJ,
            "weight_shape": torch.tensor(weight_NK.shape),
        }
        if not is_symmetric:
            tensors["weight_zero_point"] = packed(it.zero_NJ.T, bits).T.contiguous()
        if is_ordered:
            tensors["weight_g_idx"] = group_K.to(torch.int32)
        return Stored(tensors, it.weight_NK)

    return make


def bytes_of(bits_of: torch.dtype, scales: str = "row", *, is_symmetric: bool = True) -> Maker:
    """compressed-tensors' int-quantized and float-quantized; `scales`: row or one."""

    def make(weight_NK: torch.Tensor, random: torch.Generator) -> Stored:
        group_K = neighbours(weight_NK.shape[1], -1)
        if bits_of == torch.float8_e4m3fn:
            furthest = weight_NK.abs().amax(1, keepdim=True) if scales == "row" else weight_NK.abs().max().view(1)
            scale = (furthest / 448).bfloat16()
            values_NK = (weight_NK / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            said_NK = (values_NK.double() * scale.double()).float()
            return Stored({"weight": values_NK, "weight_scale": scale}, said_NK)
        it = coded(weight_NK, 8, group_K, torch.float16, is_symmetric)
        tensors = {"weight": (it.codes_NK - 128).to(torch.int8), "weight_scale": it.scale_NJ}
        if not is_symmetric:
            tensors["weight_zero_point"] = (it.zero_NJ - 128).to(torch.int8)
        return Stored(tensors, it.weight_NK)

    return make


def gptq(group_size: int, *, is_symmetric: bool = True, is_ordered: bool = False, version: int = 1) -> Maker:
    """AutoGPTQ's: inputs share words, zeros are stored one less in version 1, transposed all of it."""

    def make(weight_NK: torch.Tensor, random: torch.Generator) -> Stored:
        group_K = neighbours(weight_NK.shape[1], group_size)
        if is_ordered:
            group_K = group_K[torch.randperm(len(group_K), generator=random)]
        it = coded(weight_NK, 4, group_K, torch.float16, is_symmetric)
        stored_NJ = it.zero_NJ if version == 2 else (it.zero_NJ - 1) % 16
        tensors = {
            "qweight": packed(it.codes_NK, 4).T.contiguous(),
            "qzeros": packed(stored_NJ.T, 4),
            "scales": it.scale_NJ.T.contiguous(),
            "g_idx": group_K.to(torch.int32),
        }
        return Stored(tensors, it.weight_NK)

    return make


def gptq_config(group_size: int, **values: Any) -> dict[str, Any]:
    """As AutoGPTQ writes it."""
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "sym": True,
        "desc_act": False,
        "damp_percent": 0.01,
        "checkpoint_format": "gptq",
    } | values


def awq(group_size: int) -> Maker:
    """AutoAWQ's "gemm": outputs share words, out of order."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def make(weight_NK: torch.Tensor, random: torch.Generator) -> Stored:
        it = coded(weight_NK, 4, neighbours(weight_NK.shape[1], group_size), torch.float16, is_symmetric=False)
        tensors = {
            "qweight": packed(it.codes_NK.T, 4, order),
            "qzeros": packed(it.zero_NJ.T, 4, order),
            "scales": it.scale_NJ.T.contiguous(),
        }
        return Stored(tensors, it.weight_NK)

    return make


def awq_config(group_size: int, **values: Any) -> dict[str, Any]:
    """As AutoAWQ writes it."""
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    } | values


def compressed_config(stored: str = "pack-quantized", **weights: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, "dynamic": False} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group | {"input_activations": None, "output_activations": None}},
    }


def kv_scheme(**values: Any) -> dict[str, Any]:
    """As llm-compressor writes it for keys and values in fp8, one scale for each layer's."""
    return {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True} | values


def kv_tensors(scales: Sequence[tuple[float, float]], shape: tuple[int, ...], dtype: torch.dtype) -> Tensors:
    """Of each layer's keys and values: what is stored times its scale is meant."""
    return {
        f"model.layers.{layer}.self_attn.{name}_scale": torch.full(shape, value, dtype=dtype)
        for layer, both in enumerate(scales)
        for name, value in zip("kv", both, strict=True)
    }


def write(
    directory: Path,
    maker: Maker,
    quantization_config: dict[str, Any],
    *,
    plain: tuple[str, ...] = (),
    beside: Tensors | None = None,
) -> Tensors:
    """A random checkpoint whose linears are stored so, but for those with one of the names `plain` in theirs.

    It holds the tensors `beside`, too. The whole model's weights as they stand there, by Hugging Face's names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization_config}))
    stored, meant = _made(maker, plain)
    save_file(stored | (beside or {}), directory / "model.safetensors")
    return dict(meant)


@functools.cache
def _made(maker: Maker, plain: tuple[str, ...]) -> tuple[Tensors, Tensors]:
    """The tensors as they are stored and as they are meant; the same for all tests of one form."""
    random = torch.Generator().manual_seed(0)
    stored, meant = Tensors(), Tensors()
    for name, shape in shapes().items():
        weight = torch.randn(shape, generator=random)
        # An embedding so small that what layers add outweighs it: else a tied head repeats the last token.
        weight *= 0.3 if len(shape) == 1 else 0.03 if "embed" in name else 2.0 * shape[-1] ** -0.5
        if not name.endswith("_proj.weight") or any(word in name for word in plain):
            stored[name] = meant[name] = weight.bfloat16()
            continue
        it = maker(weight, random)
        module = name.removesuffix("weight")
        stored |= {module + suffix: tensor for suffix, tensor in it.tensors.items()}
        meant[name] = it.weight_NK
    return stored, meant


def write_plain(directory: Path, weights: Tensors) -> Path:
    """The same as an ordinary checkpoint, float32."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: tensor.float() for name, tensor in weights.items()}, directory / "model.safetensors")
    return directory


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the model's tensors, written out here by themselves."""
    width, inner, heads = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    query, key = CONFIG["num_attention_heads"] * heads, CONFIG["num_key_value_heads"] * heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (CONFIG["vocab_size"], width)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            found[f"{prefix}{norm}_layernorm.weight"] = (width,)
        for part, shape in (
            ("self_attn.q", (query, width)),
            ("self_attn.k", (key, width)),
            ("self_attn.v", (key, width)),
            ("self_attn.o", (width, query)),
            ("mlp.gate", (inner, width)),
            ("mlp.up", (inner, width)),
            ("mlp.down", (width, inner)),
        ):
            found[f"{prefix}{part}_proj.weight"] = shape
    return found | {"model.norm.weight": (width,)}
