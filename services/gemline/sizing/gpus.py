"""GPUs as their makers' data sheets have them. Floors come of these: no real GPU is faster."""

from typing import NamedTuple

from gemline.errors import ConfigurationError


class Gpu(NamedTuple):
    """`memory_bytes` is what the driver shows."""

    name: str
    memory_bytes: int
    bytes_per_s: float  # of its memory
    flops: float  # bfloat16, dense
    link_bytes_per_s: float  # to other GPUs of its node, one way


_GIB = 2**30
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", int(79.6 * _GIB), 3.35e12, 990e12, 450e9),
        Gpu("h200", int(140.4 * _GIB), 4.80e12, 990e12, 450e9),
        Gpu("a100-80gb", int(79.3 * _GIB), 2.04e12, 312e12, 300e9),
        Gpu("l4", int(22.5 * _GIB), 0.30e12, 121e12, 32e9),
    )
}


def find_gpu(name: str) -> Gpu:
    """Raises ConfigurationError when it is not among GPUS."""
    if name.lower() not in GPUS:
        raise ConfigurationError(f"gpu {name!r} is not known: {', '.join(GPUS)}", param="gpu")
    return GPUS[name.lower()]
