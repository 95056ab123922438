"""The backend of our own C++ library, for x86 with AVX-512. Float32 and fp8 weights, and fp8 pools, are torch's."""

import torch

from gemline_kernels import reference
from gemline_kernels.cpu import linear
from gemline_kernels.cpu.attention import LANES, NativeAttention
from gemline_kernels.cpu.layers import NativeLayers
from gemline_kernels.cpu.linear import PackedLinear
from gemline_kernels.cpu.native import library
from gemline_kernels.cpu.pointwise import NativePointwise
from gemline_kernels.layers import Layers, PlainLayers, Stack


class NativeBackend:
    """All operations on the CPU. Raises NativeUnavailableError where the library cannot be built or run."""

    name = "native"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self._library = library()
        pointwise, attention = NativePointwise(self._library), NativeAttention(self._library)
        # Not methods that pass their arguments on: a decode step makes some 80 calls of these.
        self.linear = linear.linear
        self.gated = linear.gated
        self.linear_int4 = linear.linear_int4
        self.gated_int4 = linear.gated_int4
        self.embedding = linear.embedding
        self.rms_norm = pointwise.rms_norm
        self.add_norm = pointwise.add_norm
        self.rope_write = pointwise.rope_write
        self.paged_attention = attention.paged_attention
        self.check_shape = reference.check_shape
        self.decoder = reference.decoder

    def layers(self, stack: Stack) -> Layers:
        """One native call a step, if all weights are packed by the library and heads are of a width for it."""
        parts = [
            part
            for layer in stack.layers
            for part in (layer.query_key_value, layer.attention_out, layer.gate_up, layer.down)
        ]
        plain = PlainLayers(self, stack)
        if stack.head_dim % LANES or not all(isinstance(part, PackedLinear) for part in parts):
            return plain
        return NativeLayers(self._library, stack, plain)
