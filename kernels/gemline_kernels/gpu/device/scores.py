"""From scores to softmax weights without a running maximum.

A cap bounds every score to (-cap, cap), so that exp neither overflows nor vanishes in float32 and bfloat16 up to a cap
of 60: weights of different tiles, and of different programs, are simply added up.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def capped_weights(products, scale, CAP: tl.constexpr):
    """exp(cap tanh(scale x / cap)) of float32 products x.

    tanh z = 1 - 2 / (1 + e^2z) is 1 and -1 where e^2z is infinity and 0, and NaN nowhere.
    """
    growth = tl.exp2(products * (scale * (2.0 * LOG2_E / CAP)))
    return tl.exp2((1.0 - 2.0 / (1.0 + growth)) * (CAP * LOG2_E))


@triton.jit
def widened(values, dtype: tl.constexpr):
    """The same values in a dtype that holds them all.

    By way of float32: from fp8 straight to bfloat16 a GPU converts one value at a time, in its slowest unit.
    """
    return values.to(tl.float32).to(dtype)


@triton.jit
def product(left, right):
    """left . right in float32, whatever they are: of float32 the exact product, not TF32's."""
    return tl.dot(left, right, input_precision="ieee")
