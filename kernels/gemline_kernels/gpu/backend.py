"""The backend for NVIDIA GPUs from Hopper on: our Triton kernels, and the vendor's product for plain weights."""

from gemline_kernels.gpu.attention import paged_attention
from gemline_kernels.gpu.layers import TritonLayers
from gemline_kernels.gpu.linear import embedding, gated, linear
from gemline_kernels.gpu.pointwise import add_norm, rms_norm, rope_write
from gemline_kernels.gpu.support import is_max_free
from gemline_kernels.layers import Layers, PlainLayers, Stack

__all__ = ["add_norm", "embedding", "gated", "layers", "linear", "name", "paged_attention", "rms_norm", "rope_write"]

name = "triton"


def layers(stack: Stack) -> Layers:
    """The operations in their order; attention that our kernels have no form for is the reference's."""
    from gemline_kernels.gpu import backend  # this module, as the backend that it is

    if stack.cap is None or not is_max_free(stack.cap):
        return PlainLayers(backend, stack)
    return TritonLayers(backend, stack, stack.cap)
