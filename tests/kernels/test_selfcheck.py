"""The check at start passes every backend, and finds each way in which kernels for Gemma 2 are known to go wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.backends import NAMES, backend_or_skip

from gemline_kernels import reference
from gemline_kernels.backend import Backend, Normed, Quantization
from gemline_kernels.reference_attention import paged_attention as right_attention
from gemline_kernels.selfcheck import SelfCheckFailedError, check

MODELS: dict[str, dict[str, Any]] = {
    "2B": {"scale": 256**-0.5, "cap": 50.0, "window": 4096, "head_dim": 256},
    "27B": {"scale": 144**-0.5, "cap": 50.0, "window": 4096, "head_dim": 128},
    "no cap, no window": {"scale": 0.4, "cap": None, "window": None, "head_dim": 6},
    "window of one": {"scale": 0.2, "cap": 30.0, "window": 1, "head_dim": 32},
}


class Mutant:
    """The reference with some operations replaced."""

    name = "mutant"

    def __init__(self, **replaced: Any) -> None:
        self._replaced = replaced

    def __getattr__(self, operation: str) -> Any:
        return self._replaced.get(operation, getattr(reference, operation))


def attention_with(**changed: Callable[[Any], Any]) -> Callable[..., torch.Tensor]:
    """Attention that takes its window, scale or cap for something else."""

    def attend(*tensors: torch.Tensor, **layer: Any) -> torch.Tensor:
        return right_attention(*tensors, **layer | {name: change(layer[name]) for name, change in changed.items()})

    return attend


def scale_after_cap(*tensors: torch.Tensor, window: int | None, scale: float, cap: float | None) -> torch.Tensor:
    """scale * cap * tanh(q . k / cap)."""
    return attend_densely(tensors, window, lambda products: softcap(products, cap) * scale)


def cap_after_mask(*tensors: torch.Tensor, window: int | None, scale: float, cap: float | None) -> torch.Tensor:
    """A masked score becomes -cap, not minus infinity."""
    return attend_densely(
        tensors, window, lambda products: products * scale, lambda scores: softcap(scores, cap).softmax(-1)
    )


def rounded_weights(*tensors: torch.Tensor, window: int | None, scale: float, cap: float | None) -> torch.Tensor:
    """A tensor core's: weights are bfloat16 when they meet the values, the softmax's sum is of those that are not."""
    return attend_densely(
        tensors,
        window,
        lambda products: softcap(products * scale, cap),
        lambda scores: scores.softmax(-1).bfloat16().float(),
    )


def other_heads(
    query_THK: torch.Tensor, keys_NSGK: torch.Tensor, values_NSGK: torch.Tensor, *rest: torch.Tensor, **layer: Any
) -> torch.Tensor:
    """Query head h reads KV head h % G."""
    order = torch.arange(query_THK.shape[1]).view(-1, keys_NSGK.shape[2]).T.flatten()
    out_THK = right_attention(query_THK[:, order], keys_NSGK, values_NSGK, *rest, **layer)
    return out_THK[:, order.argsort()]


def softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def attend_densely(
    tensors: tuple[torch.Tensor, ...],
    window: int | None,
    score: Callable[[torch.Tensor], torch.Tensor],
    weigh: Callable[[torch.Tensor], torch.Tensor] = lambda scores: scores.softmax(-1),
) -> torch.Tensor:
    query_THK, keys_NSGK, values_NSGK, table_BP, query_start, context_len = tensors
    outs, size, per_group = [], keys_NSGK.shape[1], query_THK.shape[1] // keys_NSGK.shape[2]
    for sequence, stop in enumerate(context_len.tolist()):
        rows_THK = query_THK[int(query_start[sequence]) : int(query_start[sequence + 1])].float()
        first = 0 if window is None else max(0, stop - len(rows_THK) - window + 1)
        positions = torch.arange(first, stop)
        slots = table_BP[sequence, positions // size] * size + positions % size
        keys, values = (pool.flatten(0, 1)[slots].float() for pool in (keys_NSGK, values_NSGK))
        keys, values = keys.repeat_interleave(per_group, 1), values.repeat_interleave(per_group, 1)
        rows = torch.arange(stop - len(rows_THK), stop)[:, None]
        hidden = (positions > rows) | (positions <= rows - (window or stop + 1))
        scores = score(torch.einsum("thk,jhk->htj", rows_THK, keys)).masked_fill(hidden, -torch.inf)
        outs.append(torch.einsum("htj,jhk->thk", weigh(scores), values))
    return torch.cat(outs).to(query_THK.dtype)


def test_the_mutants_are_right_but_for_their_mutation() -> None:
    """Otherwise any slip in them would count as found."""

    def attend(*tensors: torch.Tensor, window: int | None, scale: float, cap: float | None) -> torch.Tensor:
        return attend_densely(tensors, window, lambda products: softcap(products * scale, cap))

    check(Mutant(paged_attention=attend), torch.float32, "none", **MODELS["27B"])


def test_bfloat16_allows_softmax_weights_that_are_rounded_and_float32_does_not() -> None:
    backend: Backend = Mutant(paged_attention=rounded_weights)
    check(backend, torch.bfloat16, "none", **MODELS["27B"])
    with pytest.raises(SelfCheckFailedError, match=r"^paged_attention, large scores"):
        check(backend, torch.float32, "none", **MODELS["27B"])


def plain_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Times weight, not 1 + weight."""
    return reference.rms_norm(x_TD, weight_D - 1, eps)


def norm_before_add(
    x: torch.Tensor, residual: torch.Tensor, post: torch.Tensor, following: torch.Tensor, eps: float
) -> Normed:
    """The residual within the norm: a pre-norm model's order."""
    return reference.add_norm(x + residual, torch.zeros_like(x), post, following, eps)


def swapped_gate(gate: torch.Tensor, up: torch.Tensor, activation: str, quantization: Quantization) -> Any:
    return reference.gated(up, gate, activation, quantization)


def exact_gelu(gate: torch.Tensor, up: torch.Tensor, activation: str, quantization: Quantization) -> Any:
    return reference.gated(gate, up, "silu", quantization)


def interleaved_rope(projected: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Pairs (2k, 2k + 1) instead of (k, k + K/2)."""
    order = torch.cat((torch.arange(0, projected.shape[2], 2), torch.arange(1, projected.shape[2], 2)))
    return reference.rope_write(projected[..., order], *rest)[..., order.argsort()]


def values_turned_too(projected: torch.Tensor, table: Any, positions: torch.Tensor, *rest: Any) -> torch.Tensor:
    keys, values, slots, num_heads = rest
    query = reference.rope_write(projected, table, positions, keys, values, slots, num_heads)
    groups = keys.shape[2]
    turned = reference.rope(projected[:, -groups:], table, positions)
    reference.write_kv(projected[:, -groups:], turned, torch.empty_like(keys), values, slots)
    return query


def without_bias(weight: torch.Tensor, bias: torch.Tensor | None, quantization: Quantization) -> Any:
    return reference.linear(weight, None, quantization)


class UncappedEmbedding:
    num_bytes = 0

    def __init__(self, weight: torch.Tensor, quantization: Quantization) -> None:
        self._right = reference.embedding(weight, quantization)
        self.rows = self._right.rows

    def logits(self, x: torch.Tensor, cap: float | None) -> torch.Tensor:
        return self._right.logits(x, None)


MUTANTS: dict[str, dict[str, Any]] = {
    "no cap": {"paged_attention": attention_with(cap=lambda _: None)},
    "another cap": {"paged_attention": attention_with(cap=lambda cap: cap * 1.1)},
    "scale after the cap": {"paged_attention": scale_after_cap},
    "cap after the mask": {"paged_attention": cap_after_mask},
    "a window one too long": {"paged_attention": attention_with(window=lambda window: window and window + 1)},
    "a window one too short": {"paged_attention": attention_with(window=lambda window: window and window - 1)},
    "the model's window one too long": {
        "paged_attention": attention_with(window=lambda window: 4097 if window == 4096 else window)
    },
    "the model's window one too short": {
        "paged_attention": attention_with(window=lambda window: 4095 if window == 4096 else window)
    },
    "no window": {"paged_attention": attention_with(window=lambda _: None)},
    "the scale of the head width": {"paged_attention": attention_with(scale=lambda _: 128**-0.5)},
    "heads mapped in turn": {"paged_attention": other_heads},
    "gate and up swapped": {"gated": swapped_gate},
    "another activation": {"gated": exact_gelu},
    "a norm without the one": {"rms_norm": plain_norm},
    "the residual added before the norm": {"add_norm": norm_before_add},
    "rotation of neighbours": {"rope_write": interleaved_rope},
    "values rotated as well": {"rope_write": values_turned_too},
    "no bias": {"linear": without_bias},
    "no cap of the logits": {"embedding": UncappedEmbedding},
}


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_passes(name: str, dtype: torch.dtype, quantization: Quantization) -> None:
    check(backend_or_skip(name), dtype, quantization, **MODELS["27B"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_passes_for_every_model(name: str, model: str) -> None:
    check(backend_or_skip(name), torch.bfloat16, "none", **MODELS[model])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_found(mutant: str, dtype: torch.dtype) -> None:
    operation = next(iter(MUTANTS[mutant]))
    with pytest.raises(SelfCheckFailedError, match=f"^{operation}, "):
        check(Mutant(**MUTANTS[mutant]), dtype, "none", **MODELS["27B"])


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_weights_quantised_wrongly_are_found(quantization: Quantization) -> None:
    """A tenth more than the weight says is more than what 8-bit activations may do."""

    def linear(weight: torch.Tensor, bias: torch.Tensor | None, quantization: Quantization) -> Any:
        return reference.linear(weight * 1.1, bias, quantization)

    with pytest.raises(SelfCheckFailedError, match=f"^linear, {quantization}"):
        check(Mutant(linear=linear), torch.float32, quantization, **MODELS["27B"])


def test_the_message_names_operation_case_error_and_bound() -> None:
    backend: Backend = Mutant(**MUTANTS["no cap"])
    with pytest.raises(
        SelfCheckFailedError, match=r"paged_attention, .*cap 50\.0, .* off by [\d.]+, at most [\d.e-]+ is"
    ):
        check(backend, torch.float32, "none", **MODELS["27B"])
