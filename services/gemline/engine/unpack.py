"""Quantised matrices of ready-made checkpoints, made floats again: any part of one, read from that part of its tensors.

A part is cut out of the stored tensors before anything is unpacked. Values that share a 32-bit word with others are
unpacked with them, at most seven at either end.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from gemline.engine.layout import Form, Layout
from gemline_kernels.quantize import GROUP, Int4Groups

_NIBBLES = 8  # in a word of 32 bits
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble of a word is output 0, 1, ...: it stores 0, 2, 4, 6, 1, 3, 5, 7
_BLOCK_VALUES = 2**22  # made floats at a time


class WrongValuesError(ValueError):
    """What a tensor holds cannot be; `suffix` names it, without its module."""

    def __init__(self, suffix: str, message: str) -> None:
        super().__init__(message)
        self.suffix = suffix


class Region(NamedTuple):
    """Outputs [start, stop) and inputs [start, stop) of a matrix."""

    rows: slice
    columns: slice

    @classmethod
    def of(cls, shape: tuple[int, ...], cut: tuple[slice, ...]) -> "Region":
        """What `matrix[cut]` takes of a matrix of that shape."""
        slices = (*cut, slice(None), slice(None))[:2]
        return cls(*(slice(*part.indices(size)[:2]) for part, size in zip(slices, shape, strict=True)))


class _Coded(NamedTuple):
    codes_NK: torch.Tensor
    zero_NJ: torch.Tensor | int
    scale_NJ: torch.Tensor


class Kept(NamedTuple):
    """Groups of ours, and their scales before they were rounded."""

    groups: Int4Groups
    exact_NJ: torch.Tensor


Tensors = Mapping[str, torch.Tensor]  # by their names without the module


def dequantized(layout: Layout, tensors: Tensors, shape: tuple[int, int], region: Region) -> torch.Tensor:
    """That region of weight_NK, float32: exact where scales have 16 bits, else rounded once.

    `shape` is the whole matrix's. Raises WrongValuesError.
    """
    _check_shape(tensors, shape)
    group_K = _groups(layout, tensors, shape[1])[region.columns]
    num_outputs = region.rows.stop - region.rows.start
    weight_NK = torch.empty(num_outputs, region.columns.stop - region.columns.start)
    step = max(1, _BLOCK_VALUES // shape[1])
    for start in range(0, num_outputs, step):
        rows = slice(region.rows.start + start, min(region.rows.start + start + step, region.rows.stop))
        codes_NK, zero_NJ, scale_NJ = _FORMS[layout.form](layout, tensors, Region(rows, region.columns))
        block_NK = weight_NK[start : start + step].copy_(codes_NK)
        block_NK -= zero_NJ if isinstance(zero_NJ, int) else zero_NJ.float().index_select(1, group_K)
        block_NK *= _finite(layout, scale_NJ.float()).index_select(1, group_K)
    return weight_NK


def int4_groups(layout: Layout, tensors: Tensors, shape: tuple[int, int], region: Region) -> Kept | None:
    """That region as we keep int4 ourselves: its values, and its scales rounded to bfloat16. None where that cannot be.

    It can be where values are int4, zero is in their middle and our groups of 128 lie within theirs. Raises
    WrongValuesError.
    """
    if not may_be_int4_groups(layout, region):
        return None
    _check_shape(tensors, shape)
    group_K = _groups(layout, tensors, shape[1])[region.columns]
    codes_NK, _, scale_NJ = _FORMS[layout.form](layout, tensors, region)
    if not group_K.equal(_neighbours(layout, shape[1])[region.columns]):
        return None
    scale_NJ = _finite(layout, scale_NJ.float())[:, group_K[::GROUP]]
    return Kept(Int4Groups((codes_NK.to(torch.int8) - 8).contiguous(), scale_NJ.bfloat16()), scale_NJ)


def may_be_int4_groups(layout: Layout, region: Region) -> bool:
    """Before any tensor is read."""
    is_int4 = layout.bits == 4 and layout.is_symmetric and not layout.is_ordered
    return is_int4 and (layout.group_size is None or layout.group_size % GROUP == region.columns.start % GROUP == 0)


def _groups(layout: Layout, tensors: Tensors, num_inputs: int) -> torch.Tensor:
    """group_K: that of each input."""
    suffix = "g_idx" if layout.form is Form.GPTQ else "weight_g_idx"
    if suffix not in tensors or (layout.form is Form.WORDS and bool((tensors[suffix] == -1).all())):
        return _neighbours(layout, num_inputs)
    group_K, num_groups = tensors[suffix].long(), layout.num_groups(num_inputs)
    wrong = group_K[(group_K < 0) | (group_K >= num_groups)]
    if len(wrong):
        raise WrongValuesError(suffix, f"names group {int(wrong[0])}, but there are {num_groups}")
    return group_K


def _neighbours(layout: Layout, num_inputs: int) -> torch.Tensor:
    return torch.arange(num_inputs) // (layout.group_size or num_inputs)


def _check_shape(tensors: Tensors, shape: tuple[int, int]) -> None:
    if "weight_shape" in tensors and (stored := tensors["weight_shape"].tolist()) != list(shape):
        raise WrongValuesError("weight_shape", f"is {stored}, but config.json asks for {list(shape)}")


def _words(layout: Layout, tensors: Tensors, region: Region) -> _Coded:
    zero: torch.Tensor | int = 1 << layout.bits - 1
    if not layout.is_symmetric:
        zero = _unpacked(tensors["weight_zero_point"].T, region.rows, layout.bits).T
    codes_NK = _unpacked(tensors["weight_packed"][region.rows], region.columns, layout.bits)
    return _Coded(codes_NK, zero, tensors["weight_scale"][region.rows])


def _bytes(layout: Layout, tensors: Tensors, region: Region) -> _Coded:
    scale, num_outputs = tensors["weight_scale"], len(tensors["weight"])
    zero = 0 if layout.is_symmetric else tensors["weight_zero_point"]
    if layout.has_one_scale:
        scale = scale.view(1, 1).expand(num_outputs, 1)
        zero = zero if isinstance(zero, int) else zero.view(1, 1).expand(num_outputs, 1)
    codes_NK = tensors["weight"][region.rows, region.columns]
    return _Coded(codes_NK, zero if isinstance(zero, int) else zero[region.rows], scale[region.rows])


def _gptq(layout: Layout, tensors: Tensors, region: Region) -> _Coded:
    """A zero of 0 less the offset is stored as 15."""
    zero_NJ = (_unpacked(tensors["qzeros"], region.rows, 4).T + layout.zero_offset) & 15
    if layout.is_symmetric and not bool((zero_NJ == 8).all()):
        wrong = int(zero_NJ[zero_NJ != 8][0])
        stored = "checkpoint_format gptq" if layout.zero_offset else "checkpoint_format gptq_v2"
        raise WrongValuesError("qzeros", f"gives the zero {wrong} by {stored}, but with sym all must be 8")
    codes_NK = _unpacked(tensors["qweight"].T[region.rows], region.columns, 4)
    return _Coded(codes_NK, zero_NJ, tensors["scales"].T[region.rows])


def _awq(layout: Layout, tensors: Tensors, region: Region) -> _Coded:
    codes_KN = _unpacked(tensors["qweight"][region.columns], region.rows, 4, _AWQ_ORDER)
    zero_JN = _unpacked(tensors["qzeros"], region.rows, 4, _AWQ_ORDER)
    return _Coded(codes_KN.T, zero_JN.T, tensors["scales"].T[region.rows])


_FORMS: dict[Form, Callable[[Layout, Tensors, Region], _Coded]] = {
    Form.WORDS: _words,
    Form.BYTES: _bytes,
    Form.GPTQ: _gptq,
    Form.AWQ: _awq,
}


def _unpacked(words_RW: torch.Tensor, values: slice, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Those values of each row, uint8: the first in the lowest bits of the first word, or as `order` says."""
    per_word = 32 // bits
    first = values.start // per_word
    bytes_RB = words_RW[:, first : -(-values.stop // per_word)].contiguous().view(torch.uint8)
    if bits == 4:
        bytes_RB = torch.stack((bytes_RB & 15, bytes_RB >> 4), dim=2).flatten(1)
    if order is not None:
        bytes_RB = bytes_RB.view(len(bytes_RB), -1, _NIBBLES)[:, :, list(order)].flatten(1)
    return bytes_RB[:, values.start - first * per_word : values.stop - first * per_word]


def _finite(layout: Layout, scale: torch.Tensor) -> torch.Tensor:
    if not bool(scale.isfinite().all()):
        suffix = "weight_scale" if layout.form in (Form.WORDS, Form.BYTES) else "scales"
        raise WrongValuesError(suffix, f"{int((~scale.isfinite()).sum())} scales are not finite (NaN or Inf)")
    return scale
