"""Weights in plain torch: a linear, a gated pair and an embedding, as they are or quantised, on any device."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from gemline_kernels.backend import Quantization
from gemline_kernels.quantize import Int4Groups, quantize_fp8, quantize_int4, quantize_int8
from gemline_kernels.reference_attention import softcap


def linear(weight_ND: torch.Tensor, bias_N: torch.Tensor | None, quantization: Quantization) -> "_Linear":
    """y = x . weight^T + bias. A quantised weight is dequantised to float32 anew each time; x is not quantised."""
    return _Linear(_weight(weight_ND, quantization), bias_N)


def gated(gate_FD: torch.Tensor, up_FD: torch.Tensor, activation: str, quantization: Quantization) -> "_Gated":
    """y = activation(x . gate^T) * (x . up^T). Raises ValueError on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    return _Gated(linear(gate_FD, None, quantization), linear(up_FD, None, quantization), activation)


def linear_int4(groups_ND: Int4Groups, bias_N: torch.Tensor | None) -> "_Linear":
    """`linear` of a weight that was quantised before."""
    return _Linear(groups_ND, bias_N)


def gated_int4(gate_FD: Int4Groups, up_FD: Int4Groups, activation: str) -> "_Gated":
    """`gated` of weights that were quantised before. Raises ValueError on an unknown activation."""
    geglu(torch.zeros(1, 1), torch.zeros(1, 1), activation)
    return _Gated(linear_int4(gate_FD, None), linear_int4(up_FD, None), activation)


def embedding(weight_VD: torch.Tensor, quantization: Quantization) -> "_Embedding":
    """Rows and logits of one weight; int8 with any quantization.

    Of one byte int8 makes most here: a row of Gaussian values is off by 0.9 %, with fp8 by 2.6 %.
    """
    return _Embedding(_weight(weight_VD, "none" if quantization == "none" else "int8"), weight_VD.dtype)


def geglu(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up in float32, rounded to gate's dtype, with Hugging Face's names of activations."""
    gate, up = gate_TF.float(), up_TF.float()
    match activation:
        case "gelu_pytorch_tanh":
            active = functional.gelu(gate, approximate="tanh")
        case "gelu":
            active = functional.gelu(gate)
        case "silu":
            active = functional.silu(gate)
        case "relu":
            active = functional.relu(gate)
        case _:
            raise ValueError(f"unknown activation {activation!r}")
    return (active * up).to(gate_TF.dtype)


def stacked(upper_ND: torch.Tensor, lower_ND: torch.Tensor) -> torch.Tensor:
    """One above the other; halves of one piece of memory that lie so already are not copied."""
    is_whole = (
        upper_ND.is_contiguous()
        and lower_ND.is_contiguous()
        and upper_ND.dtype == lower_ND.dtype
        and upper_ND.shape[1:] == lower_ND.shape[1:]
        and upper_ND.untyped_storage().data_ptr() == lower_ND.untyped_storage().data_ptr()
        and upper_ND.data_ptr() + upper_ND.nbytes == lower_ND.data_ptr()
    )
    if not is_whole:
        return torch.cat((upper_ND, lower_ND))
    return upper_ND.as_strided((len(upper_ND) + len(lower_ND), *upper_ND.shape[1:]), upper_ND.stride())


class _Weight(Protocol):
    @property
    def num_bytes(self) -> int: ...

    def dequantized(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class _Plain:
    """A weight as it came."""

    weight: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def dequantized(self) -> torch.Tensor:
        return self.weight


def _weight(weight: torch.Tensor, quantization: Quantization) -> _Weight:
    match quantization:
        case "none":
            return _Plain(weight)
        case "int8":
            return quantize_int8(weight)
        case "int4":
            return quantize_int4(weight)
        case "fp8":
            return quantize_fp8(weight)


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: _Weight
    bias_N: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        weight_ND = self.weight.dequantized()
        bias_N = None if self.bias_N is None else self.bias_N.to(weight_ND.dtype)
        return functional.linear(x_TD.to(weight_ND.dtype), weight_ND, bias_N).to(x_TD.dtype)


@dataclass(frozen=True, slots=True)
class _Gated:
    gate: _Linear
    up: _Linear
    activation: str

    @property
    def num_bytes(self) -> int:
        return self.gate.num_bytes + self.up.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        return geglu(self.gate(x_TD), self.up(x_TD), self.activation)


@dataclass(frozen=True, slots=True)
class _Embedding:
    weight: _Weight
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        """Those rows times scale, rounded to the dtype that the weight came in."""
        return (self.weight.dequantized()[token_ids_T].float() * scale).to(self.dtype)

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        """softcap(x . weight^T)."""
        weight_VD = self.weight.dequantized()
        return softcap(functional.linear(x_BD.to(weight_VD.dtype), weight_VD).float(), cap)
