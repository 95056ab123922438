"""Launches of the kernels between the matrix products, one program a token (or a token's head)."""

import torch
import triton

from gemline_kernels import reference
from gemline_kernels.backend import Normed, RopeTable
from gemline_kernels.gpu.device import pointwise
from gemline_kernels.scales import UNSCALED, Scales

_GEGLU_COLUMNS = 1024
_SOFTCAP_COLUMNS = 1024
_NORM_WARPS = 8


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """`reference.rms_norm`."""
    out_TD = torch.empty_like(x_TD)
    num_rows, width = x_TD.shape
    pointwise.rms_norm[(num_rows,)](
        x_TD, weight_D, out_TD, eps, WIDTH=width, COLUMNS=triton.next_power_of_2(width), num_warps=_NORM_WARPS
    )
    return out_TD


def embed(
    token_ids_T: torch.Tensor, weight_VD: torch.Tensor, first_norm_D: torch.Tensor, scale: float, eps: float
) -> Normed:
    """The rows times scale, rounded, and the same normed for the first layer."""
    num_rows, width = len(token_ids_T), weight_VD.shape[1]
    residual_TD, out_TD = (weight_VD.new_empty((num_rows, width)) for _ in range(2))
    pointwise.embed[(num_rows,)](
        token_ids_T,
        weight_VD,
        first_norm_D,
        residual_TD,
        out_TD,
        scale,
        eps,
        WIDTH=width,
        COLUMNS=triton.next_power_of_2(width),
        num_warps=_NORM_WARPS,
    )
    return Normed(residual_TD, out_TD)


def add_norm(
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    post_weight_D: torch.Tensor,
    next_weight_D: torch.Tensor,
    eps: float,
) -> Normed:
    """`reference.add_norm`."""
    new_TD, out_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    num_rows, width = x_TD.shape
    pointwise.add_norm[(num_rows,)](
        x_TD,
        residual_TD,
        post_weight_D,
        next_weight_D,
        new_TD,
        out_TD,
        eps,
        WIDTH=width,
        COLUMNS=triton.next_power_of_2(width),
        num_warps=_NORM_WARPS,
    )
    return Normed(new_TD, out_TD)


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
    """`reference.rope_write`; slot -1 is written nowhere."""
    num_rows, num_parts, width = projected_TMK.shape
    query_THK = projected_TMK.new_empty((num_rows, num_heads, width))
    pointwise.rope_write[(num_rows, num_parts)](
        projected_TMK,
        table.cos_PK,
        table.sin_PK,
        positions_T,
        slots_T,
        query_THK,
        keys_NSGK,
        values_NSGK,
        1.0 / scales.keys,
        1.0 / scales.values,
        HEADS=num_heads,
        GROUPS=(num_parts - num_heads) // 2,
        WIDTH=width,
        num_warps=1,
    )
    return query_THK


def softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """`reference.softcap` of all values, float32."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(x.numel(), _SOFTCAP_COLUMNS),)
    pointwise.softcap[grid](x, out, x.numel(), CAP=cap or 0.0, COLUMNS=_SOFTCAP_COLUMNS)
    return out


def geglu(gate_up_TF: torch.Tensor, activation: str) -> torch.Tensor:
    """`reference.geglu` of [T, 2F], gate first; other activations than Gemma 2's are the reference's."""
    if activation != "gelu_pytorch_tanh":
        gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
        return reference.geglu(gate_TF, up_TF, activation)
    num_rows, width = gate_up_TF.shape[0], gate_up_TF.shape[1] // 2
    out_TF = gate_up_TF.new_empty((num_rows, width))
    columns = min(_GEGLU_COLUMNS, triton.next_power_of_2(width))
    pointwise.geglu[(num_rows, triton.cdiv(width, columns))](gate_up_TF, out_TF, WIDTH=width, COLUMNS=columns)
    return out_TF
