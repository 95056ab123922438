"""All layers in one call of the native library. What it computes: `PlainLayers`, with this library's operations."""

import ctypes
from collections.abc import Sequence
from typing import ClassVar

import torch

from gemline_kernels.backend import Gated, Linear
from gemline_kernels.cpu.attention import AttentionShape, attention_shape
from gemline_kernels.cpu.linear import PackedLinear
from gemline_kernels.layers import KeysValues, Layers, LayerWeights, Stack, Step, is_worth_narrowing

_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    """`Layer` of layers.cpp."""

    _fields_: ClassVar = [
        ("query_key_value", _ADDRESS),
        ("attention_out", _ADDRESS),
        ("gate_up", _ADDRESS),
        ("down", _ADDRESS),
        ("post_attention_norm", _ADDRESS),
        ("pre_feedforward_norm", _ADDRESS),
        ("post_feedforward_norm", _ADDRESS),
        ("next_norm", _ADDRESS),
        ("shape", AttentionShape),
    ]


class _Model(ctypes.Structure):
    """`Model` of layers.cpp."""

    _fields_: ClassVar = [
        ("num_layers", _COUNT),
        ("width", _COUNT),
        ("layers", _ADDRESS),
        ("first_norm", _ADDRESS),
        ("cos", _ADDRESS),
        ("sin", _ADDRESS),
        ("eps", ctypes.c_float),
    ]


class _Step(ctypes.Structure):
    """`Step` of layers.cpp."""

    _fields_: ClassVar = [
        ("num_rows", _COUNT),
        ("num_sequences", _COUNT),
        ("num_sampled", _COUNT),
        ("table_width", _COUNT * 2),
        ("positions", _ADDRESS),
        ("slots", _ADDRESS * 2),
        ("tables", _ADDRESS * 2),
        ("query_start", _ADDRESS),
        ("context_len", _ADDRESS),
        ("sample_rows", _ADDRESS),
    ]


class NativeLayers:
    """A stack whose weights are all packed by this library, of one dtype, its head width a multiple of 16.

    Over pools of another dtype, fp8, it is `plain`.
    """

    def __init__(self, library: ctypes.CDLL, stack: Stack, plain: Layers) -> None:
        self._run = library.gemline_layers
        self._run.argtypes = (_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS)
        self._run.restype = None
        self._plain = plain
        self._stack = stack  # keeps alive what the structures point to
        self._model = _Model()
        self._pools: Sequence[KeysValues] = ()
        self._addresses: ctypes.Array[ctypes.c_void_p] = (_ADDRESS * 0)()

    def __call__(self, residual_TD: torch.Tensor, step: Step, pools: Sequence[KeysValues], /) -> torch.Tensor:
        """As `Layers` says."""
        if pools[0].keys.dtype is not residual_TD.dtype:
            return self._plain(residual_TD, step, pools)
        if pools is not self._pools:
            self._bind(pools)
        is_narrow = is_worth_narrowing(step)
        num_rows = len(step.sample_rows) if is_narrow else len(residual_TD)
        normed_TD = residual_TD.new_empty((num_rows, residual_TD.shape[1]))
        told = _Step(
            len(residual_TD),
            len(step.context_len),
            len(step.sample_rows),
            (step.global_table_BP.shape[1], step.local_table_BP.shape[1]),
            step.positions_T.data_ptr(),
            (step.global_slots_T.data_ptr(), step.local_slots_T.data_ptr()),
            (step.global_table_BP.data_ptr(), step.local_table_BP.data_ptr()),
            step.query_start.data_ptr(),
            step.context_len.data_ptr(),
            step.sample_rows.data_ptr(),
        )
        self._run(
            ctypes.addressof(self._model),
            ctypes.addressof(self._addresses),
            ctypes.addressof(told),
            is_narrow,
            residual_TD.data_ptr(),
            normed_TD.data_ptr(),
        )
        return normed_TD if is_narrow else normed_TD[step.sample_rows]

    def _bind(self, pools: Sequence[KeysValues]) -> None:
        """Addresses of a cache's pools, taken once a cache and not once a step."""
        stack = self._stack
        shapes = [_shape(stack, layer, pool) for layer, pool in zip(stack.layers, pools, strict=True)]
        layers = (_Layer * len(shapes))(
            *(_layer(layer, shape) for layer, shape in zip(stack.layers, shapes, strict=True))
        )
        self._model = _Model(
            len(layers),
            len(stack.first_norm_D),
            ctypes.addressof(layers),
            stack.first_norm_D.data_ptr(),
            stack.rope_table.cos_PK.data_ptr(),
            stack.rope_table.sin_PK.data_ptr(),
            stack.eps,
        )
        parts = [part for pool in pools for part in (pool.keys, pool.values)]
        self._addresses = (_ADDRESS * len(parts))(*(part.data_ptr() for part in parts))
        self._layers, self._pools = layers, pools  # kept as long as their addresses are


def _shape(stack: Stack, layer: LayerWeights, pool: KeysValues) -> AttentionShape:
    return attention_shape(stack.num_heads, pool.keys, layer.window, stack.scale, stack.cap)


def _layer(layer: LayerWeights, shape: AttentionShape) -> _Layer:
    parts = (layer.query_key_value, layer.attention_out, layer.gate_up, layer.down)
    norms = (
        layer.post_attention_norm_D,
        layer.pre_feedforward_norm_D,
        layer.post_feedforward_norm_D,
        layer.next_norm_D,
    )
    return _Layer(*(packed_address(part) for part in parts), *(norm.data_ptr() for norm in norms), shape)


def packed_address(part: Linear | Gated) -> int:
    """Of its `Packed`. Raises TypeError when it is not this library's."""
    if not isinstance(part, PackedLinear):
        raise TypeError(f"{part!r} is not packed by the native library")
    return part.packed.address
