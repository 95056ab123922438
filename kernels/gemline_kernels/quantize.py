"""Quantised weights and activations in plain torch: the formats' specification. Knows no kernel's memory layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

GROUP = 128  # inputs that share a scale in int4
_FP8_MAX = 448
_SMALLEST = torch.finfo(torch.float32).tiny
# The value furthest from zero becomes -8 or, clipped, stands for -8.5 to -9.5: whatever fits the group best. Against
# max|w| / 7 the squared error of Gaussian weights falls by 31 %.
_INT4_STEPS = (8.0, 8.5, 9.0, 9.5)


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """weight[n, k] = values_NK[n, k] * scale_N[n]: int8 from -127 to 127, float32."""

    values_NK: torch.Tensor
    scale_N: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of both tensors."""
        return self.values_NK.nbytes + self.scale_N.nbytes

    def dequantized(self) -> torch.Tensor:
        """weight_NK, float32."""
        return self.values_NK.float() * self.scale_N[:, None]

    def rows(self, index_T: torch.Tensor) -> torch.Tensor:
        """weight_NK[index], float32."""
        return self.values_NK[index_T].float() * self.scale_N[index_T][:, None]


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """weight[n, k] = values_NK[n, k] * scale_N[n]: float8_e4m3fn from -448 to 448, float32."""

    values_NK: torch.Tensor
    scale_N: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of both tensors."""
        return self.values_NK.nbytes + self.scale_N.nbytes

    def dequantized(self) -> torch.Tensor:
        """weight_NK, float32."""
        return self.values_NK.float() * self.scale_N[:, None]


@dataclass(frozen=True, slots=True)
class Int4Groups:
    """weight[n, k] = values_NK[n, k] * scale_NJ[n, k // 128]: int8 from -8 to 7, bfloat16 of either sign."""

    values_NK: torch.Tensor
    scale_NJ: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of both tensors (the values take a byte each here)."""
        return self.values_NK.nbytes + self.scale_NJ.nbytes

    def to(self, device: torch.device) -> "Int4Groups":
        """The same on that device."""
        return Int4Groups(self.values_NK.to(device), self.scale_NJ.to(device))

    def dequantized(self) -> torch.Tensor:
        """weight_NK, float32."""
        scale_NK = self.scale_NJ.float().repeat_interleave(GROUP, dim=1)[:, : self.values_NK.shape[1]]
        return self.values_NK.float() * scale_NK


def quantize_int8(weight_NK: torch.Tensor) -> Int8Rows:
    """Each row by itself: scale = max|w| / 127, value = round(w / scale), ties to even. A row of zeros has scale 1.

    Raises ValueError on NaN or infinity.
    """
    weight_NK = _finite(weight_NK)
    scale_N = row_scale(weight_NK, 127)
    values_NK = (weight_NK / scale_N[:, None]).round_()
    return Int8Rows(values_NK.clamp_(-127, 127).to(torch.int8), scale_N)


def quantize_fp8(weight_NK: torch.Tensor) -> Fp8Rows:
    """Each row by itself: scale = max|w| / 448, value = w / scale as e4m3, ties to even. A row of zeros has scale 1.

    Raises ValueError on NaN or infinity.
    """
    weight_NK = _finite(weight_NK)
    scale_N = row_scale(weight_NK, _FP8_MAX)
    values_NK = weight_NK / scale_N[:, None]
    return Fp8Rows(values_NK.clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn), scale_N)


def quantize_activations(x_TK: torch.Tensor, levels: int = 127) -> Int8Rows:
    """Each token's row by itself, as it comes: scale = max|x| / levels, value = round(x * (1 / scale)), ties to even.

    Where a row has NaN or infinity its scale does too, and so has every product of it.
    """
    x_TK = x_TK.float()
    scale_T = row_scale(x_TK, levels)
    return Int8Rows((x_TK * scale_T.reciprocal()[:, None]).round_().to(torch.int8), scale_T)


def row_scale(weight_NK: torch.Tensor, levels: int) -> torch.Tensor:
    """scale_N = max|w| / levels of each row; 1 where that is zero or nearly so."""
    scale_N = weight_NK.abs().amax(dim=1) / levels
    return torch.where(scale_N < _SMALLEST, 1.0, scale_N)


def quantize_int4(weight_NK: torch.Tensor) -> Int4Groups:
    """Groups of 128 inputs of a row, the last one maybe shorter.

    A group's scale is its value furthest from zero over -8, -8.5, -9 or -9.5, rounded to bfloat16: the one whose
    squared error is least, the first of equals. value = round(w / scale), ties to even, clipped to -8..7. A group of
    zeros has scale 1. Raises ValueError on NaN or infinity.
    """
    num_inputs = weight_NK.shape[1]
    padded = functional.pad(_finite(weight_NK), (0, -num_inputs % GROUP))
    groups = padded.view(weight_NK.shape[0], -1, GROUP)
    furthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    best_error = torch.full_like(furthest, torch.inf)
    scale, values = torch.ones_like(furthest), torch.zeros_like(groups, dtype=torch.int8)
    for step in _INT4_STEPS:
        candidate = _int4_scale(furthest, step)
        exact = groups / candidate
        rounded = exact.round().clamp_(-8, 7)
        # In units of the furthest value: of very large weights or very small ones squares are not float32 any more.
        error = (rounded - exact).square_().sum(dim=2, keepdim=True) * (candidate / furthest).square_()
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        scale = torch.where(better, candidate, scale)
        values = torch.where(better, rounded.to(torch.int8), values)
    return Int4Groups(values.flatten(1)[:, :num_inputs].contiguous(), scale.squeeze(2).bfloat16())


def joined(parts: Sequence[Int4Groups]) -> Int4Groups:
    """One below the other."""
    return Int4Groups(torch.cat([it.values_NK for it in parts]), torch.cat([it.scale_NJ for it in parts]))


def _int4_scale(furthest: torch.Tensor, step: float) -> torch.Tensor:
    scale = (furthest / -step).bfloat16().float()
    return torch.where(scale.abs() < _SMALLEST, 1.0, scale)


def _finite(weight_NK: torch.Tensor) -> torch.Tensor:
    """The weight in float32, if all of it is finite."""
    weight_NK = weight_NK.float()
    if not weight_NK.isfinite().all():
        raise ValueError(not_finite(weight_NK.shape))
    return weight_NK


def not_finite(shape: torch.Size) -> str:
    """The words with which every backend refuses such a weight."""
    return f"a weight of shape {tuple(shape)} holds NaN or infinity and cannot be quantised"
