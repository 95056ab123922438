"""What became of matrices that were stored quantised, and how far they are from what was stored. Knows no file."""

from collections.abc import Callable

import torch

from gemline.engine.layout import Layout
from gemline.engine.options import Quantization
from gemline_kernels.quantize import Fp8Rows, Int4Groups, Int8Rows, quantize_fp8, quantize_int4, quantize_int8

_SAMPLE_ROWS = 64  # of each matrix: to quantise all of them twice would take as long as to load them
_QUANTIZE: dict[Quantization, Callable[[torch.Tensor], Int8Rows | Int4Groups | Fp8Rows]] = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "fp8": quantize_fp8,
}


class Repacking:
    """Filled while a model is packed; then it tells. An error is its root mean square over the weight's."""

    def __init__(self, quantization: Quantization) -> None:
        self._quantization = quantization
        self._layout: Layout | None = None
        self._num_dequantized = 0
        self._kept: dict[str, float] = {}
        self._requantized: dict[str, float] = {}

    def kept(self, name: str, layout: Layout, exact_NJ: torch.Tensor, groups: Int4Groups) -> None:
        """Values and groups are as they were; scales were rounded."""
        self._layout = layout
        self._kept[name] = _off(groups.scale_NJ.float(), exact_NJ)

    def dequantized(self, name: str, layout: Layout, weight_NK: torch.Tensor) -> None:
        """Made floats, which the packing that follows may quantise anew. Not for values that are not finite."""
        self._layout = layout
        if self._quantization == "none":
            self._num_dequantized += 1
            return
        sample_NK = weight_NK[:_SAMPLE_ROWS]
        self._requantized[name] = _off(_QUANTIZE[self._quantization](sample_NK).dequantized(), sample_NK)

    def __str__(self) -> str:
        """One line; empty when nothing was quantised."""
        told = []
        if self._num_dequantized:
            told.append(f"{self._num_dequantized} matrices dequantized")
        if self._kept:
            told.append(f"{len(self._kept)} kept, scales rounded to bfloat16 ({_worst(self._kept)})")
        if self._requantized:
            sampled = f"{_worst(self._requantized)}, by {_SAMPLE_ROWS} rows of each"
            told.append(f"{len(self._requantized)} quantized anew to {self._quantization} ({sampled})")
        return f"stored as {self._layout}: {', '.join(told)}" if told else ""


def _off(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _worst(errors: dict[str, float]) -> str:
    name = max(errors, key=lambda it: errors[it])
    return f"off by {100 * errors[name]:.2g} % at most, {name}"
