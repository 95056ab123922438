"""Weights for any CPU: torch's oneDNN products, packed once where that pays. Private operators are tried before use.

What was measured decides (two cores, torch 2.13):
- float32 and, on a CPU with bfloat16 instructions, bfloat16 are prepacked: 1.1 to 2.2 times as fast at the same bits.
- bfloat16 without such instructions is emulated by oneDNN, and at five times the cost of float32. There weights stay
  as they are, and beyond four tokens blocks of them are made float32 for the call.
- int8 is oneDNN's product of quantised activations, the fastest there is from the first token on.
- fp8 has no product on a CPU: blocks of the weight are made float32 for each call. It is right, it saves memory, and it
  is slow: int8 is for speed.
- int4 becomes int8 at load, row by row: that adds a twentieth to int4's own error. torch's int4 product would halve
  the memory, but it dequantises on every call, and from 16 tokens on it is three to four times slower than int8.
"""

import functools
from typing import Protocol

import torch
from torch.nn import functional

from gemline_kernels.backend import Embedding, Gated, Linear, Quantization
from gemline_kernels.cpu.build import cpu_flags
from gemline_kernels.quantize import (
    Fp8Rows,
    Int4Groups,
    Int8Rows,
    joined,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    row_scale,
)
from gemline_kernels.reference_attention import softcap
from gemline_kernels.reference_linear import geglu, stacked

_BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})  # the last is Arm's
_PREPACK_ROWS = 16  # a hint; products of any number of rows work, and as fast
_DIRECT_ROWS = 4
_BLOCK_VALUES = 2**19  # converted at a time: 2 MiB of float32, which stay in the cache


def linear(weight_ND: torch.Tensor, bias_N: torch.Tensor | None, quantization: Quantization) -> Linear:
    """`reference.linear`. Raises ValueError when the weight is to be quantised and is not finite."""
    return _Linear(_matrix(weight_ND, quantization), bias_N)


def gated(gate_FD: torch.Tensor, up_FD: torch.Tensor, activation: str, quantization: Quantization) -> Gated:
    """`reference.gated`. Raises ValueError as `linear` does, and on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    return _Gated(_matrix(stacked(gate_FD, up_FD), quantization), activation)


def linear_int4(groups_ND: Int4Groups, bias_N: torch.Tensor | None) -> Linear:
    """`reference.linear_int4`."""
    return _Linear(_int4_matrix(groups_ND), bias_N)


def gated_int4(gate_FD: Int4Groups, up_FD: Int4Groups, activation: str) -> Gated:
    """`reference.gated_int4`. Raises ValueError on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    return _Gated(_int4_matrix(joined((gate_FD, up_FD))), activation)


def embedding(weight_VD: torch.Tensor, quantization: Quantization) -> Embedding:
    """`reference.embedding`, never coarser than int8. Raises ValueError as `linear` does.

    A packed weight cannot be read by rows, so only int8 is packed, and held a second time as it is.
    """
    if quantization != "none":
        rows = quantize_int8(weight_VD)
        matrix = _int8_matrix(rows)
        return _Embedding(rows, matrix, weight_VD.dtype, rows.num_bytes + matrix.num_bytes)
    plain = _Plain(weight_VD.contiguous())
    return _Embedding(plain, plain, weight_VD.dtype, plain.num_bytes)


class _Matrix(Protocol):
    """A weight to be multiplied with; the product is in x's dtype or in float32."""

    @property
    def num_bytes(self) -> int: ...

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor: ...


class _Rows(Protocol):
    """A weight to be read by rows, float32 or as stored."""

    def rows(self, index_T: torch.Tensor) -> torch.Tensor: ...


def _matrix(weight_ND: torch.Tensor, quantization: Quantization) -> _Matrix:
    match quantization:
        case "int8":
            return _int8_matrix(quantize_int8(weight_ND))
        case "int4":
            return _int4_matrix(quantize_int4(weight_ND))
        case "fp8":
            return _Fp8(quantize_fp8(weight_ND))
    if _prepacks(weight_ND.dtype):
        return _Prepacked(weight_ND)
    return _Plain(weight_ND.contiguous())


def _int4_matrix(groups: Int4Groups) -> _Matrix:
    return _int8_matrix(quantize_int8(groups.dequantized()))


def _int8_matrix(rows: Int8Rows) -> _Matrix:
    levels = _activation_levels()
    return _Plain(rows.dequantized()) if levels is None else _Int8(rows, levels)


class _Plain:
    """A weight as it is."""

    def __init__(self, weight_ND: torch.Tensor) -> None:
        self._weight_ND = weight_ND
        self._emulated = weight_ND.dtype == torch.bfloat16 and not _has_bf16()
        self.num_bytes = weight_ND.nbytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        if not self._emulated:
            return functional.linear(x_TD.to(self._weight_ND.dtype), self._weight_ND)
        if x_TD.shape[0] <= _DIRECT_ROWS:
            return functional.linear(x_TD, self._weight_ND)
        return _multiply_blocks(x_TD, self._weight_ND)

    def rows(self, index_T: torch.Tensor) -> torch.Tensor:
        return self._weight_ND[index_T]


class _Fp8:
    """Fp8 rows as they are; activations are not quantised."""

    def __init__(self, rows: Fp8Rows) -> None:
        self._rows = rows
        self.num_bytes = rows.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        return _multiply_blocks(x_TD, self._rows.values_NK).mul_(self._rows.scale_N)


class _Prepacked:
    """A weight in oneDNN's own layout; the plain copy is not kept."""

    def __init__(self, weight_ND: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_ND.contiguous(), _PREPACK_ROWS)
        self.num_bytes = weight_ND.nbytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        y_TN: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, self._packed, None, "none", [], "")
        return y_TN


class _Int8:
    """Int8 rows in oneDNN's layout, times activations quantised row by row to -levels..levels."""

    def __init__(self, rows: Int8Rows, levels: int) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(rows.values_NK, None)
        self._scale_N = rows.scale_N
        self._zero_N = torch.zeros(rows.scale_N.shape, dtype=torch.int32)
        self._levels = levels
        self.num_bytes = rows.num_bytes + self._zero_N.nbytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        x_TD = x_TD.float()
        scale_T1 = row_scale(x_TD, self._levels)[:, None]
        zero = self._levels + 1  # the smallest that keeps all values positive: see `_activation_levels`
        values_TD = (x_TD * scale_T1.reciprocal()).round_().add_(zero).to(torch.uint8)
        return _qlinear(values_TD, zero, self._packed, self._scale_N, self._zero_N).mul_(scale_T1)


class _Linear:
    def __init__(self, matrix: _Matrix, bias_N: torch.Tensor | None) -> None:
        self._matrix = matrix
        self._bias_N = bias_N
        self.num_bytes = matrix.num_bytes + (0 if bias_N is None else bias_N.nbytes)

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        y_TN = self._matrix(x_TD)
        if self._bias_N is not None:
            y_TN = y_TN.float() + self._bias_N.float()
        return y_TN.to(x_TD.dtype)


class _Gated:
    """Both weights in one matrix, gate above up."""

    def __init__(self, matrix: _Matrix, activation: str) -> None:
        self._matrix = matrix
        self._activation = activation
        self.num_bytes = matrix.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        gate_TF, up_TF = self._matrix(x_TD).chunk(2, dim=1)
        return geglu(gate_TF, up_TF, self._activation).to(x_TD.dtype)


class _Embedding:
    def __init__(self, rows: _Rows, matrix: _Matrix, dtype: torch.dtype, num_bytes: int) -> None:
        self._rows = rows
        self._matrix = matrix
        self._dtype = dtype
        self.num_bytes = num_bytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        """Those rows times scale, rounded to the dtype that the weight came in."""
        return (self._rows.rows(token_ids_T).float() * scale).to(self._dtype)

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        """softcap(x . weight^T), float32."""
        return softcap(self._matrix(x_BD).float(), cap)


def _multiply_blocks(x_TD: torch.Tensor, values_ND: torch.Tensor) -> torch.Tensor:
    """x . values^T in float32; values are made float32 a few rows at a time."""
    num_rows = max(1, _BLOCK_VALUES // values_ND.shape[1])
    x_TD = x_TD.float()
    starts = range(0, values_ND.shape[0], num_rows)
    return torch.cat([functional.linear(x_TD, values_ND[start : start + num_rows].float()) for start in starts], dim=1)


def _qlinear(
    values_TD: torch.Tensor, zero: int, packed: torch.Tensor, scale_N: torch.Tensor, zero_N: torch.Tensor
) -> torch.Tensor:
    """(values - zero) . weight^T in float32, exact up to its rounding."""
    y_TN: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        values_TD, 1.0, zero, packed, scale_N, zero_N, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y_TN


def _has_bf16() -> bool:
    return not _BF16_CPU_FLAGS.isdisjoint(cpu_flags())


@functools.cache
def _prepacks(dtype: torch.dtype) -> bool:
    """Whether torch has these operators, they work for the dtype, and oneDNN has instructions for it."""
    if dtype not in (torch.float32, torch.bfloat16) or (dtype == torch.bfloat16 and not _has_bf16()):
        return False
    try:
        product = _Prepacked(torch.eye(32, dtype=dtype))(torch.ones(2, 32, dtype=dtype))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(product.eq(1).all())


@functools.cache
def _activation_levels() -> int | None:
    """How far quantised activations may go, or None where there is no such product.

    Without VNNI oneDNN adds two products of bytes in 16 bits, which saturate unless activations keep below 128, their
    zero included: there it is 63 levels instead of 127.
    """
    rows = Int8Rows(torch.full((32, 256), 127, dtype=torch.int8), torch.ones(32))
    for levels in (127, 63):
        x_TD = torch.full((2, 256), float(levels))
        try:
            product = _Int8(rows, levels)(x_TD)
        except (AttributeError, RuntimeError, TypeError):
            return None
        if product.eq(levels * 127.0 * 256).all():
            return levels
    return None
