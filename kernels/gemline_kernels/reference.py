"""The backend in plain torch: the specification that faster ones are checked against, on any device."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from gemline_kernels.backend import Normed, RopeTable
from gemline_kernels.layers import KeysValues, Layers, PlainLayers, Stack, Weights
from gemline_kernels.reference_attention import paged_attention, softcap
from gemline_kernels.reference_linear import embedding, gated, gated_int4, geglu, linear, linear_int4
from gemline_kernels.scales import FLOAT8_MAX, UNSCALED, Scales
from gemline_kernels.vocabulary import Vocabulary

__all__ = [
    "add_norm",
    "check_shape",
    "decoder",
    "device",
    "embedding",
    "gated",
    "gated_int4",
    "geglu",
    "layers",
    "linear",
    "linear_int4",
    "name",
    "paged_attention",
    "rms_norm",
    "rope",
    "rope_table",
    "rope_write",
    "softcap",
    "stored",
    "write_kv",
]

name = "reference"
device = torch.device("cpu")


def check_shape(dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    """Every one will do."""


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * (1 + weight), in float32, rounded to x's dtype at the end."""
    return _rms_norm(x_TD, weight_D, eps).to(x_TD.dtype)


def add_norm(
    x_TD: torch.Tensor, residual_TD: torch.Tensor, post_weight_D: torch.Tensor, next_weight_D: torch.Tensor, eps: float
) -> Normed:
    """Gemma 2 between two halves of a layer: new = residual + rms_norm(x, post), and rms_norm(new, next).

    The sum is float32 and rounded once; what is normed for the next half is the rounded sum, as that is what the
    residual stream holds.
    """
    new_TD = (residual_TD.float() + _rms_norm(x_TD, post_weight_D, eps)).to(x_TD.dtype)
    return Normed(new_TD, rms_norm(new_TD, next_weight_D, eps))


def rope_table(num_positions: int, num_dims: int, theta: float, device: torch.device | str = "cpu") -> RopeTable:
    """The angle of dimension pair k at position p is p * theta^(-2k / num_dims), in float32 as published."""
    exponents = torch.arange(0, num_dims, 2, dtype=torch.float32, device=device) / num_dims
    angles_PK = torch.outer(torch.arange(num_positions, device=device).float(), 1.0 / theta**exponents)
    return RopeTable(angles_PK.cos(), angles_PK.sin())


def rope(x_THK: torch.Tensor, table: RopeTable, positions_T: torch.Tensor) -> torch.Tensor:
    """Rotates each pair (x[k], x[k + K/2]) by its angle: Hugging Face's layout; float32 inside, rounded once."""
    return _turned(x_THK, table, positions_T).to(x_THK.dtype)


def stored(x: torch.Tensor, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """x as a pool of that dtype holds it. In float8_e4m3fn: x / scale, in float32, what is beyond +-448 made that, the
    nearest value, of two as near the one whose last bit is 0. In the others x itself, whose scale is 1.

    What is read is what is stored times scale, in float32.
    """
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    return (x.float() / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(dtype)


def write_kv(
    keys_TGK: torch.Tensor,
    values_TGK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    slots_T: torch.Tensor,
    scales: Scales = UNSCALED,
) -> None:
    """Puts token t's key and value, as `stored`, into slot slots_T[t] = block_id * S + offset of the pool, in place."""
    for x_TGK, pool_NSGK, scale in ((keys_TGK, keys_NSGK, scales.keys), (values_TGK, values_NSGK, scales.values)):
        new_TGK, slots_MGK = stored(x_TGK, pool_NSGK.dtype, scale), pool_NSGK.flatten(0, 1)
        if pool_NSGK.dtype == torch.float8_e4m3fn:  # which torch cannot copy by index, only its bytes
            new_TGK, slots_MGK = new_TGK.view(torch.uint8), slots_MGK.view(torch.uint8)
        slots_MGK.index_copy_(0, slots_T, new_TGK)


def rope_write(
    projected_TMK: torch.Tensor,
    table: RopeTable,
    positions_T: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    slots_T: torch.Tensor,
    num_heads: int,
    scales: Scales = UNSCALED,
) -> torch.Tensor:
    """The rotated query_THK; the rotated keys and the values go into the pool, keys rounded once, as `stored`.

    projected holds H query heads, then G key heads, then G value heads. Position p's rotation is row p of the table.
    """
    num_groups = (projected_TMK.shape[1] - num_heads) // 2
    sizes = (num_heads, num_groups, num_groups)
    query_THK, keys_TGK, values_TGK = torch.split_with_sizes(projected_TMK, sizes, dim=1)
    write_kv(_turned(keys_TGK, table, positions_T), values_TGK, keys_NSGK, values_NSGK, slots_T, scales)
    return rope(query_THK, table, positions_T)


def layers(stack: Stack) -> Layers:
    """The operations in their order."""
    from gemline_kernels import reference  # this module, as the backend that it is

    return PlainLayers(reference, stack)


def decoder(
    weights: Weights,
    pools: Sequence[KeysValues],
    num_rows: int,
    num_blocks: int,
    vocabulary: Vocabulary | None = None,
) -> None:
    """A CPU has no queue to fill."""


def _turned(x_THK: torch.Tensor, table: RopeTable, positions_T: torch.Tensor) -> torch.Tensor:
    """`rope` before it is rounded, float32."""
    cos_T1K, sin_T1K = (part[positions_T][:, None] for part in table)
    first, second = x_THK.float().chunk(2, dim=-1)
    return torch.cat((first * cos_T1K - second * sin_T1K, second * cos_T1K + first * sin_T1K), dim=-1)


def _rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x_TD.float(), (x_TD.shape[-1],), 1.0 + weight_D.float(), eps)
