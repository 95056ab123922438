"""Attention over a paged cache by the native library. Its formula: `paged_attention` in `reference_attention`."""

import ctypes
from typing import ClassVar

import torch

from gemline_kernels import reference_attention
from gemline_kernels.scales import UNSCALED, Scales

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64
LANES = 16


class AttentionShape(ctypes.Structure):
    """`AttentionShape` of operations.h."""

    _fields_: ClassVar = [
        ("num_heads", ctypes.c_int64),
        ("num_groups", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("is_bf16", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("cap", ctypes.c_float),
    ]


class NativeAttention:
    """`paged_attention` for contiguous CPU tensors of one dtype, float32 or bfloat16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = library.gemline_paged_attention
        self._attend.argtypes = (*[_ADDRESS] * 5, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS)
        self._attend.restype = None
        self._shapes: dict[
            tuple[object, ...], AttentionShape
        ] = {}  # one for each kind of layer: made once, not every call

    def paged_attention(
        self,
        query_THK: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        block_table_BP: torch.Tensor,
        query_start: torch.Tensor,
        context_len: torch.Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float | None,
        scales: Scales = UNSCALED,
    ) -> torch.Tensor:
        """out_THK of the queries over the keys that each sees.

        A width that 16 does not divide is left to reference, and so is a pool of fp8.
        """
        key = (query_THK.shape[1:], keys_NSGK.shape[1:], query_THK.dtype, keys_NSGK.dtype, window, scale, cap)
        shape = self._shapes.get(key)
        if shape is None:
            if query_THK.shape[2] % LANES or keys_NSGK.dtype is not query_THK.dtype:
                return reference_attention.paged_attention(
                    query_THK,
                    keys_NSGK,
                    values_NSGK,
                    block_table_BP,
                    query_start,
                    context_len,
                    window=window,
                    scale=scale,
                    cap=cap,
                    scales=scales,
                )
            shape = self._shapes[key] = attention_shape(query_THK.shape[1], keys_NSGK, window, scale, cap)
        out_THK = torch.empty_like(query_THK)
        self._attend(
            ctypes.addressof(shape),
            query_THK.data_ptr(),
            keys_NSGK.data_ptr(),
            values_NSGK.data_ptr(),
            block_table_BP.data_ptr(),
            block_table_BP.shape[1],
            query_start.data_ptr(),
            context_len.data_ptr(),
            len(context_len),
            out_THK.data_ptr(),
        )
        return out_THK


def attention_shape(
    num_heads: int, keys_NSGK: torch.Tensor, window: int | None, scale: float, cap: float | None
) -> AttentionShape:
    """What calls for a layer with that pool have in common."""
    block_size, num_groups, width = keys_NSGK.shape[1:]
    is_bf16 = keys_NSGK.dtype is torch.bfloat16
    return AttentionShape(num_heads, num_groups, width, block_size, is_bf16, window or 0, scale, cap or 0.0)
