"""Norms and rotation by the native library. Formulas: the functions of the same names in `reference`."""

import ctypes

import torch

from gemline_kernels import reference
from gemline_kernels.backend import Normed, RopeTable
from gemline_kernels.scales import UNSCALED, Scales

_ADDRESS, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativePointwise:
    """`rms_norm`, `add_norm` and `rope_write` for contiguous CPU tensors of one dtype, float32 or bfloat16.

    A decode step calls these some 40 times, so that a call is little more than its foreign function.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm = library.gemline_rms_norm
        self._rms_norm.argtypes = (_COUNT, _ADDRESS, _ADDRESS, _FLOAT, _COUNT, _COUNT, _ADDRESS)
        self._add_norm = library.gemline_add_norm
        self._add_norm.argtypes = (_COUNT, *[_ADDRESS] * 4, _FLOAT, _COUNT, _COUNT, _ADDRESS, _ADDRESS)
        self._rope_write = library.gemline_rope_write
        self._rope_write.argtypes = (_COUNT, *[_ADDRESS] * 5, *[_COUNT] * 4, *[_ADDRESS] * 3)
        for function in (self._rms_norm, self._add_norm, self._rope_write):
            function.restype = None

    def rms_norm(self, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * (1 + weight)."""
        num_rows, width = x_TD.shape
        out_TD = torch.empty_like(x_TD)
        is_bfloat16 = x_TD.dtype is torch.bfloat16
        self._rms_norm(is_bfloat16, x_TD.data_ptr(), weight_D.data_ptr(), eps, num_rows, width, out_TD.data_ptr())
        return out_TD

    def add_norm(
        self,
        x_TD: torch.Tensor,
        residual_TD: torch.Tensor,
        post_weight_D: torch.Tensor,
        next_weight_D: torch.Tensor,
        eps: float,
    ) -> Normed:
        """new = residual + rms_norm(x, post), and rms_norm(new, next)."""
        num_rows, width = x_TD.shape
        new_TD, normed_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
        self._add_norm(
            x_TD.dtype is torch.bfloat16,
            x_TD.data_ptr(),
            residual_TD.data_ptr(),
            post_weight_D.data_ptr(),
            next_weight_D.data_ptr(),
            eps,
            num_rows,
            width,
            new_TD.data_ptr(),
            normed_TD.data_ptr(),
        )
        return Normed(new_TD, normed_TD)

    def rope_write(
        self,
        projected_TMK: torch.Tensor,
        table: RopeTable,
        positions_T: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        slots_T: torch.Tensor,
        num_heads: int,
        scales: Scales = UNSCALED,
    ) -> torch.Tensor:
        """The rotated query_THK; the rotated keys and the values go into the pool. One of fp8 is left to reference."""
        if keys_NSGK.dtype is not projected_TMK.dtype:
            return reference.rope_write(
                projected_TMK, table, positions_T, keys_NSGK, values_NSGK, slots_T, num_heads, scales
            )
        num_rows, num_parts, width = projected_TMK.shape
        query_THK = projected_TMK.new_empty((num_rows, num_heads, width))
        self._rope_write(
            projected_TMK.dtype is torch.bfloat16,
            projected_TMK.data_ptr(),
            table.cos_PK.data_ptr(),
            table.sin_PK.data_ptr(),
            positions_T.data_ptr(),
            slots_T.data_ptr(),
            num_rows,
            num_heads,
            (num_parts - num_heads) // 2,
            width,
            query_THK.data_ptr(),
            keys_NSGK.data_ptr(),
            values_NSGK.data_ptr(),
        )
        return query_THK
