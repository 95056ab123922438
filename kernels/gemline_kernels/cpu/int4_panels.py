"""Int4 groups that were quantised before, in the panels of panels.h. Knows no library."""

import torch
from torch.nn import functional

from gemline_kernels.quantize import GROUP, Int4Groups

_PANEL = 32


def int4_panels(weight_NK: Int4Groups, up_NK: Int4Groups | None = None) -> torch.Tensor:
    """Panels of one weight, or of a gated pair: 16 outputs of gate above the same 16 of up. One dimension, uint8.

    Raises ValueError when gate and up are not of one shape.
    """
    parts = (weight_NK,) if up_NK is None else (weight_NK, up_NK)
    if weight_NK.values_NK.shape != parts[-1].values_NK.shape:
        raise ValueError(f"gate is {tuple(weight_NK.values_NK.shape)}, but up is {tuple(parts[-1].values_NK.shape)}")
    num_rows = _PANEL // len(parts)
    panels = torch.cat([_bytes(part, num_rows) for part in parts], dim=1)
    scales = torch.cat([_scales(part, num_rows) for part in parts], dim=1)
    num_panels, _, num_groups = scales.shape
    scale_bytes = scales.permute(0, 2, 1).contiguous().view(torch.uint8)
    value_bytes = panels.permute(0, 2, 3, 1, 4).reshape(num_panels, num_groups, -1)
    return torch.cat((scale_bytes, value_bytes), dim=2).flatten()


def _bytes(part: Int4Groups, num_rows: int) -> torch.Tensor:
    """[panels, rows of a panel, groups, 16, 4]: input 8 i + j below, input 8 i + 4 + j above."""
    num_outputs, num_inputs = part.values_NK.shape
    padded = functional.pad(part.values_NK, (0, -num_inputs % GROUP, 0, -num_outputs % num_rows))
    low, high = (padded + 8).to(torch.uint8).view(-1, num_rows, part.scale_NJ.shape[1], GROUP // 8, 2, 4).unbind(4)
    return low | high << 4


def _scales(part: Int4Groups, num_rows: int) -> torch.Tensor:
    """[panels, rows of a panel, groups]; 1 where there is no row."""
    num_outputs, num_groups = part.scale_NJ.shape
    return functional.pad(part.scale_NJ, (0, 0, 0, -num_outputs % num_rows), value=1.0).view(-1, num_rows, num_groups)
