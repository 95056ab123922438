"""Weights in the native library's panels, and the calls on them. Knows layouts by their size only."""

import ctypes
import functools
from typing import ClassVar

import torch

from gemline_kernels.backend import Quantization
from gemline_kernels.cpu.int4_panels import int4_panels
from gemline_kernels.cpu.native import library
from gemline_kernels.quantize import Int4Groups, not_finite

_FORMATS: dict[Quantization, int] = {"none": 0, "int8": 1, "int4": 2}
_ACTIVATIONS = ("", "gelu_pytorch_tanh", "gelu", "silu", "relu")
_SOURCES = (torch.float32, torch.bfloat16)
_PANEL = 32
_MOST_INPUTS = 2**16  # an int32 sum of so many products of int8 cannot overflow


class _Weight(ctypes.Structure):
    """`Packed` of panels.h."""

    _fields_: ClassVar = [
        ("format", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("num_inputs", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


@functools.cache
def _functions() -> ctypes.CDLL:
    """The library with the types of this file's functions set."""
    native = library()
    integer, address = ctypes.c_int64, ctypes.c_void_p
    native.gemline_num_panels.restype = native.gemline_panel_bytes.restype = integer
    native.gemline_num_panels.argtypes = native.gemline_panel_bytes.argtypes = (address,)
    native.gemline_pack.restype = integer
    native.gemline_pack.argtypes = (address, address, address, integer, integer)
    native.gemline_linear.restype = None
    native.gemline_linear.argtypes = (address, address, integer, integer, address, integer, ctypes.c_float)
    native.gemline_rows.restype = integer
    native.gemline_rows.argtypes = (address, address, integer, address, integer, ctypes.c_float)
    return native


class Packed:
    """A weight_NK, or the pair gate_NK and up_NK of a gated MLP, in panels of its own: the tensors are not kept.

    "none" is bfloat16. Groups that were quantised before go with "int4". Raises ValueError when a value to be quantised
    is not finite.
    """

    def __init__(
        self,
        weight_NK: torch.Tensor | Int4Groups,
        quantization: Quantization,
        *,
        up_NK: torch.Tensor | Int4Groups | None = None,
        activation: str = "",
        bias_N: torch.Tensor | None = None,
    ) -> None:
        self.num_outputs, self.num_inputs = _values(weight_NK).shape
        if self.num_inputs > _MOST_INPUTS:
            raise ValueError(f"a weight has {self.num_inputs} inputs, at most {_MOST_INPUTS} are supported")
        native = _functions()
        self._weight = _Weight(_FORMATS[quantization], self.num_outputs, self.num_inputs, activation_number(activation))
        self.address = ctypes.addressof(self._weight)
        num_panels = native.gemline_num_panels(self.address)
        if isinstance(weight_NK, Int4Groups):
            self._panels = int4_panels(weight_NK, up_NK if isinstance(up_NK, Int4Groups) else None)
        else:
            self._panels = torch.empty(num_panels * native.gemline_panel_bytes(self.address), dtype=torch.uint8)
        self._scale = torch.empty(num_panels * _PANEL if quantization == "int8" else 0)
        self._bias = None if bias_N is None else bias_N.float().contiguous()
        self._weight.panels = self._panels.data_ptr()
        self._weight.scale = self._scale.data_ptr()
        self._weight.bias = None if self._bias is None else self._bias.data_ptr()
        if isinstance(weight_NK, torch.Tensor):
            self._fill(weight_NK, None if up_NK is None else _values(up_NK))
        self._linear = native.gemline_linear

    def _fill(self, weight_NK: torch.Tensor, up_NK: torch.Tensor | None) -> None:
        dtype = weight_NK.dtype if weight_NK.dtype in _SOURCES else torch.float32
        first = weight_NK.to(dtype).contiguous()
        second = first if up_NK is None else up_NK.to(dtype).contiguous()
        if first.shape != second.shape:
            raise ValueError(f"gate is {tuple(first.shape)}, but up is {tuple(second.shape)}")
        wrong = _functions().gemline_pack(
            self.address, first.data_ptr(), second.data_ptr(), self.num_inputs, dtype == torch.bfloat16
        )
        if wrong:
            raise ValueError(not_finite(weight_NK.shape))

    @property
    def num_bytes(self) -> int:
        """Memory of panels, scales and bias."""
        return self._panels.nbytes + self._scale.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def multiply(self, x_TK: torch.Tensor, dtype: torch.dtype, cap: float | None = None) -> torch.Tensor:
        """y_TN = x . weight^T with bias, activation or cap, in `dtype` (float32 or bfloat16, as x may be)."""
        num_rows, num_inputs = x_TK.shape
        if num_inputs != self.num_inputs or x_TK.dtype not in _SOURCES:
            raise ValueError(f"x is {tuple(x_TK.shape)} {x_TK.dtype}, the weight takes {self.num_inputs} inputs")
        if not x_TK.is_contiguous():
            x_TK = x_TK.contiguous()
        y_TN = torch.empty(num_rows, self.num_outputs, dtype=dtype)
        self._linear(
            self.address,
            x_TK.data_ptr(),
            num_rows,
            x_TK.dtype is torch.bfloat16,
            y_TN.data_ptr(),
            dtype is torch.bfloat16,
            cap or 0.0,
        )
        return y_TN

    def rows(self, index_T: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
        """weight[index] * scale. Raises ValueError on an index outside the weight. Not for int4 or a pair."""
        index_T = index_T.to(torch.int64).contiguous()
        out_TK = torch.empty(index_T.shape[0], self.num_inputs, dtype=dtype)
        wrong = _functions().gemline_rows(
            self.address,
            index_T.data_ptr(),
            index_T.shape[0],
            out_TK.data_ptr(),
            dtype is torch.bfloat16,
            scale,
        )
        if wrong >= 0:
            raise ValueError(f"token {int(index_T[wrong])} is outside a vocabulary of {self.num_outputs}")
        return out_TK


def _values(weight_NK: torch.Tensor | Int4Groups) -> torch.Tensor:
    return weight_NK.values_NK if isinstance(weight_NK, Int4Groups) else weight_NK


def activation_number(activation: str) -> int:
    """As `Activation` of panels.h. Raises ValueError on an unknown one."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    return _ACTIVATIONS.index(activation)
