"""The backend for NVIDIA GPUs from Hopper on: our Triton kernels, and the vendor's product for plain weights."""

from collections.abc import Sequence

import torch

from gemline_kernels.decoding import Decoder
from gemline_kernels.gpu.attention import paged_attention
from gemline_kernels.gpu.layers import TritonLayers
from gemline_kernels.gpu.linear import embedding, gated, gated_int4, linear, linear_int4
from gemline_kernels.gpu.pointwise import add_norm, rms_norm, rope_write
from gemline_kernels.gpu.support import check_shape, is_max_free
from gemline_kernels.layers import KeysValues, Layers, PlainLayers, Stack, Weights
from gemline_kernels.vocabulary import Vocabulary

__all__ = [
    "add_norm",
    "check_shape",
    "decoder",
    "device",
    "embedding",
    "gated",
    "gated_int4",
    "layers",
    "linear",
    "linear_int4",
    "name",
    "paged_attention",
    "rms_norm",
    "rope_write",
]

# Sums of split products are float32, as the self-check expects; torch would let them be rounded to bfloat16 in between.
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

name = "triton"
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # cpu: the kernels are interpreted


def layers(stack: Stack) -> Layers:
    """The operations in their order; attention that our kernels have no form for is the reference's."""
    from gemline_kernels.gpu import backend  # this module, as the backend that it is

    if stack.cap is None or not is_max_free(stack.cap):
        return PlainLayers(backend, stack)
    return TritonLayers(backend, stack, stack.cap)


def decoder(
    weights: Weights,
    pools: Sequence[KeysValues],
    num_rows: int,
    num_blocks: int,
    vocabulary: Vocabulary | None = None,
) -> Decoder | None:
    """None for a model whose attention our kernels have no form for."""
    from gemline_kernels.gpu.decoder import TritonDecoder  # which is made of this backend

    cap = weights.stack.cap
    if cap is None or not is_max_free(cap):
        return None
    return TritonDecoder(weights, pools, num_rows, num_blocks, vocabulary)
