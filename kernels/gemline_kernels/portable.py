"""The backend for any CPU: torch's oneDNN products with weights packed once, everything else as `reference` does it."""

from gemline_kernels.onednn import embedding, gated, gated_int4, linear, linear_int4
from gemline_kernels.reference import (
    add_norm,
    check_shape,
    decoder,
    device,
    layers,
    paged_attention,
    rms_norm,
    rope_write,
)

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

name = "onednn"
