"""Keys and values of one layer to be sent and received: those slots, those KV heads, in the dtype of the wire."""

import torch
import triton

from gemline_kernels.gpu.device import transfer as device

_TOKENS = 16


def pack(
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    slots_T: torch.Tensor,
    groups: range,
    dtype: torch.dtype,
    factors: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """packed_2TGK: the keys, then the values, of those slots and KV heads, times their factors.

    Of a local layer the caller names the window's slots alone. Values beyond fp8's range become its largest.
    """
    pool_groups, width = keys_NSGK.shape[2:]
    out = torch.empty((2, len(slots_T), len(groups), width), dtype=dtype, device=keys_NSGK.device)
    device.pack[_grid(slots_T, groups)](
        keys_NSGK, values_NSGK, slots_T, out, groups.start, len(groups), len(slots_T), *factors,
        POOL_GROUPS=pool_groups, WIDTH=width, TOKENS=_TOKENS,
    )  # fmt: skip
    return out


def unpack(
    packed_2TGK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    slots_T: torch.Tensor,
    groups: range,
    factors: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Writes what `pack` gave into those slots and KV heads; others stay as they are."""
    pool_groups, width = keys_NSGK.shape[2:]
    device.unpack[_grid(slots_T, groups)](
        packed_2TGK, keys_NSGK, values_NSGK, slots_T, groups.start, len(groups), len(slots_T), *factors,
        POOL_GROUPS=pool_groups, WIDTH=width, TOKENS=_TOKENS,
    )  # fmt: skip


def _grid(slots_T: torch.Tensor, groups: range) -> tuple[int, int, int]:
    return triton.cdiv(len(slots_T), _TOKENS), len(groups), 2
