"""Random arrays that are the same to the bit on every machine and with every numpy: counters, shifts, products."""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def uniform(seed: int, name: str, shape: tuple[int, ...], rms: float) -> Array:
    """Evenly spread values of that root mean square; a stream of its own for each name."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    count = int(np.prod(shape))
    # The raw bits of Philox are fixed by numpy's stability promise; its float distributions are not.
    bits = np.random.Philox(key=key).random_raw(count)
    fractions = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)  # in [-1, 1)
    return (fractions * np.float32(rms * math.sqrt(3))).reshape(shape)


def to_bfloat16(values: Array) -> bytes:
    """Little-endian bfloat16, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()
