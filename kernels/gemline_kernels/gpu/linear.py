"""Weights on a GPU: as they are for the vendor's product, or quantised for our own when rows are few.

Quantised weights are multiplied by activations as they are: at few rows a step waits for weights, not for arithmetic.
Beyond `_FEW_ROWS` a weight is made the activations' dtype for the call, which costs a fraction of the product then.
"""

from typing import NamedTuple

import torch
import triton
from torch.nn import functional

from gemline_kernels.backend import Embedding, Gated, Linear, Normed, Quantization
from gemline_kernels.gpu.device import linear as device
from gemline_kernels.gpu.pointwise import embed, rms_norm, softcap
from gemline_kernels.gpu.pointwise import geglu as geglu_
from gemline_kernels.gpu.support import num_processors
from gemline_kernels.quantize import (
    GROUP,
    Fp8Rows,
    Int4Groups,
    Int8Rows,
    joined,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
)
from gemline_kernels.reference_linear import geglu, stacked

_FEW_ROWS = 64
_LEAST_ROWS = 16  # of a tile of tensor cores
_COLUMNS, _STEP = 32, 128
_FINISH_COLUMNS = 256
_PROGRAMS_PER_PROCESSOR = 4
_GELU_TANH = "gelu_pytorch_tanh"


def linear(weight_ND: torch.Tensor, bias_N: torch.Tensor | None, quantization: Quantization) -> Linear:
    """`reference.linear`. Raises ValueError when the weight is to be quantised and is not finite."""
    if quantization == "none":
        return _Plain(weight_ND.contiguous(), bias_N)
    return _Quantized(_pack(weight_ND, quantization), bias_N)


def gated(gate_FD: torch.Tensor, up_FD: torch.Tensor, activation: str, quantization: Quantization) -> Gated:
    """`reference.gated`. Raises ValueError as `linear` does, and on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    both = stacked(gate_FD, up_FD)
    if quantization == "none":
        return _PlainGated(both, activation)
    return _QuantizedGated(_pack(both, quantization), activation)


def linear_int4(groups_ND: Int4Groups, bias_N: torch.Tensor | None) -> Linear:
    """`reference.linear_int4`."""
    return _Quantized(_nibbles(groups_ND), bias_N)


def gated_int4(gate_FD: Int4Groups, up_FD: Int4Groups, activation: str) -> Gated:
    """`reference.gated_int4`. Raises ValueError on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    return _QuantizedGated(_nibbles(joined((gate_FD, up_FD))), activation)


def embedding(weight_VD: torch.Tensor, quantization: Quantization) -> Embedding:
    """`reference.embedding`: int8 with any quantization. Raises ValueError as `linear` does."""
    if quantization == "none":
        return _PlainEmbedding(weight_VD.contiguous())
    return _QuantizedEmbedding(quantize_int8(weight_VD), weight_VD.dtype)


def begin(
    embedding: Embedding, token_ids_T: torch.Tensor, scale: float, first_norm_D: torch.Tensor, eps: float
) -> Normed:
    """A step's first rows, times scale, and the same normed; in one go where the embedding is not quantised."""
    if isinstance(embedding, _PlainEmbedding):
        return embed(token_ids_T, embedding.weight_VD, first_norm_D, scale, eps)
    rows_TD = embedding.rows(token_ids_T, scale)
    return Normed(rows_TD, rms_norm(rows_TD, first_norm_D, eps))


class _Nibbles(NamedTuple):
    """int4 groups as `nibble_linear` reads them."""

    values: torch.Tensor  # [N, groups * 64] uint8
    scale: torch.Tensor  # [N, groups] bfloat16
    num_inputs: int

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def dequantized(self) -> torch.Tensor:
        """weight_NK, float32."""
        halves = torch.stack((self.values & 15, self.values >> 4)).to(torch.int8) - 8
        groups = halves.view(2, len(self.scale), -1, GROUP // 2).permute(1, 2, 0, 3).reshape(len(self.scale), -1)
        return Int4Groups(groups[:, : self.num_inputs], self.scale).dequantized()


_Packed = Int8Rows | Fp8Rows | _Nibbles


def _pack(weight_ND: torch.Tensor, quantization: Quantization) -> _Packed:
    match quantization:
        case "int8":
            return quantize_int8(weight_ND)
        case "fp8":
            return quantize_fp8(weight_ND)
    return _nibbles(quantize_int4(weight_ND))


def _nibbles(groups: Int4Groups) -> _Nibbles:
    num_outputs, num_inputs = groups.values_NK.shape
    padded = functional.pad(groups.values_NK, (0, -num_inputs % GROUP)).view(num_outputs, -1, 2, GROUP // 2)
    low, high = (padded.to(torch.int16) + 8).unbind(2)
    return _Nibbles((low | high << 4).to(torch.uint8).flatten(1), groups.scale_NJ.contiguous(), num_inputs)


def _multiply(
    packed: _Packed,
    x_TD: torch.Tensor,
    *,
    bias_N: torch.Tensor | None = None,
    is_gated: bool = False,
    cap: float | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x . weight^T of at most `_FEW_ROWS` rows, finished as asked, in `dtype` or x's."""
    num_rows, num_inputs = x_TD.shape
    num_outputs = len(packed[0]) if isinstance(packed, _Nibbles) else len(packed.values_NK)
    rows = max(_LEAST_ROWS, triton.next_power_of_2(num_rows))
    tiles = triton.cdiv(num_outputs, _COLUMNS)
    splits = _num_splits(tiles, triton.cdiv(num_inputs, _STEP), x_TD.device)
    partial = x_TD.new_empty((splits, num_rows, num_outputs), dtype=torch.float32)
    sizes = {"ROWS": rows, "OUTPUTS": num_outputs, "INPUTS": num_inputs, "SPLITS": splits, "COLUMNS": _COLUMNS}
    if isinstance(packed, _Nibbles):
        device.nibble_linear[(tiles, splits)](
            x_TD, packed.values, packed.scale, partial, num_rows, **sizes, GROUP=GROUP, STAGES=4
        )
        scale = partial  # not read
    else:
        device.byte_linear[(tiles, splits)](x_TD, packed.values_NK, partial, num_rows, **sizes, STEP=_STEP, STAGES=4)
        scale = packed.scale_N
    width = num_outputs // 2 if is_gated else num_outputs
    out = x_TD.new_empty((num_rows, width), dtype=dtype or x_TD.dtype)
    device.finish[(num_rows, triton.cdiv(width, _FINISH_COLUMNS))](
        partial,
        scale,
        partial if bias_N is None else bias_N,
        out,
        num_rows,
        OUTPUTS=num_outputs,
        SPLITS=splits,
        COLUMNS=_FINISH_COLUMNS,
        HAS_SCALE=not isinstance(packed, _Nibbles),
        HAS_BIAS=bias_N is not None,
        GATED=is_gated,
        CAP=cap or 0.0,
    )
    return out


def _num_splits(num_tiles: int, num_steps: int, device: torch.device) -> int:
    """Into how many parts the inputs are cut, so that every processor has work."""
    wanted: int = triton.cdiv(num_processors(device) * _PROGRAMS_PER_PROCESSOR, num_tiles)
    return max(1, min(wanted, num_steps))


class _Plain:
    def __init__(self, weight_ND: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self._weight_ND, self._bias_N = weight_ND, bias_N
        self.num_bytes = weight_ND.nbytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        return functional.linear(x_TD, self._weight_ND, self._bias_N)


class _Quantized:
    def __init__(self, packed: _Packed, bias_N: torch.Tensor | None) -> None:
        self._packed, self._bias_N = packed, bias_N
        self.num_bytes = packed.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        if len(x_TD) <= _FEW_ROWS:
            return _multiply(self._packed, x_TD, bias_N=self._bias_N)
        return functional.linear(x_TD, self._packed.dequantized().to(x_TD.dtype), self._bias_N)


class _PlainGated:
    def __init__(self, both: torch.Tensor, activation: str) -> None:
        self._both, self._activation = both, activation
        self.num_bytes = both.nbytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        return geglu_(functional.linear(x_TD, self._both), self._activation)


class _QuantizedGated:
    def __init__(self, packed: _Packed, activation: str) -> None:
        self._packed, self._activation = packed, activation
        self.num_bytes = packed.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        if len(x_TD) > _FEW_ROWS:
            return geglu_(functional.linear(x_TD, self._packed.dequantized().to(x_TD.dtype)), self._activation)
        if self._activation == _GELU_TANH:
            return _multiply(self._packed, x_TD, is_gated=True)
        return geglu_(_multiply(self._packed, x_TD), self._activation)


class _PlainEmbedding:
    def __init__(self, weight_VD: torch.Tensor) -> None:
        self.weight_VD = weight_VD
        self.num_bytes = weight_VD.nbytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        return (self.weight_VD[token_ids_T].float() * scale).to(self.weight_VD.dtype)

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        return softcap(functional.linear(x_BD, self.weight_VD), cap)


class _QuantizedEmbedding:
    def __init__(self, packed: Int8Rows, dtype: torch.dtype) -> None:
        self._packed, self._dtype = packed, dtype
        self.num_bytes = packed.num_bytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        return (self._packed.rows(token_ids_T) * scale).to(self._dtype)

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        if len(x_BD) <= _FEW_ROWS:
            return _multiply(self._packed, x_BD, cap=cap, dtype=torch.float32)
        return softcap(functional.linear(x_BD, self._packed.dequantized().to(x_BD.dtype)), cap)
