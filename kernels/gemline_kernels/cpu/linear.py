"""The native backend's weights: bfloat16, int8 or int4 panels. Float32 and fp8 weights are oneDNN's."""

import torch

from gemline_kernels import onednn
from gemline_kernels.backend import Embedding, Gated, Linear, Quantization
from gemline_kernels.cpu.packed import Packed
from gemline_kernels.quantize import Int4Groups


def linear(weight_ND: torch.Tensor, bias_N: torch.Tensor | None, quantization: Quantization) -> Linear:
    """`reference.linear`, packed. Raises ValueError when a weight to be quantised is not finite."""
    if quantization == "fp8" or _is_float(weight_ND, quantization):
        return onednn.linear(weight_ND, bias_N, quantization)
    return PackedLinear(Packed(weight_ND, quantization, bias_N=bias_N))


def gated(gate_FD: torch.Tensor, up_FD: torch.Tensor, activation: str, quantization: Quantization) -> Gated:
    """`reference.gated`, packed side by side. Raises ValueError as `linear` does, and on an unknown activation."""
    if quantization == "fp8" or _is_float(gate_FD, quantization):
        return onednn.gated(gate_FD, up_FD, activation, quantization)
    return PackedLinear(Packed(gate_FD, quantization, up_NK=up_FD, activation=activation))


def linear_int4(groups_ND: Int4Groups, bias_N: torch.Tensor | None) -> Linear:
    """`reference.linear_int4`, packed."""
    return PackedLinear(Packed(groups_ND, "int4", bias_N=bias_N))


def gated_int4(gate_FD: Int4Groups, up_FD: Int4Groups, activation: str) -> Gated:
    """`reference.gated_int4`, packed side by side. Raises ValueError on an unknown activation."""
    return PackedLinear(Packed(gate_FD, "int4", up_NK=up_FD, activation=activation))


def embedding(weight_VD: torch.Tensor, quantization: Quantization) -> Embedding:
    """`reference.embedding`, packed; never coarser than int8. Raises ValueError as `linear` does."""
    if _is_float(weight_VD, quantization):
        return onednn.embedding(weight_VD, quantization)
    return _Embedding(Packed(weight_VD, "none" if quantization == "none" else "int8"), weight_VD.dtype)


def _is_float(weight: torch.Tensor, quantization: Quantization) -> bool:
    """Whether it stays float32."""
    return quantization == "none" and weight.dtype != torch.bfloat16


class PackedLinear:
    """A weight, or a gated pair: the panels know which."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.num_bytes = packed.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        """y_TN in x's dtype."""
        return self.packed.multiply(x_TD, x_TD.dtype)


class _Embedding:
    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        self._packed = packed
        self._dtype = dtype
        self.num_bytes = packed.num_bytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        return self._packed.rows(token_ids_T, scale, self._dtype)

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        return self._packed.multiply(x_BD, torch.float32, cap)
