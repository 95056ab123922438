"""A few rows times a quantised weight, read once.

The inputs are shared out among programs too, as outputs alone are too few to keep a GPU's memory busy; what the
programs of one output found is added up in their order.
"""

import triton
import triton.language as tl

from gemline_kernels.gpu.device.pointwise import capped, gelu_tanh
from gemline_kernels.gpu.device.scores import product, widened


@triton.jit
def byte_linear(
    x,
    weight,
    partial,
    num_rows,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (n, s): partial[s, :, n * COLUMNS on] from the s-th part of the inputs, scales left out.

    x [num_rows, INPUTS]; weight [OUTPUTS, INPUTS], int8 or fp8; partial [SPLITS, num_rows, OUTPUTS] float32.
    """
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_output = row < num_rows, output < OUTPUTS
    num_steps: tl.constexpr = (INPUTS + STEP - 1) // STEP
    first, last = tl.program_id(1) * num_steps // SPLITS, (tl.program_id(1) + 1) * num_steps // SPLITS
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        column = step * STEP + tl.arange(0, STEP)
        there = column < INPUTS
        weights = tl.load(
            weight + output.to(tl.int64)[:, None] * INPUTS + column[None, :],
            mask=is_output[:, None] & there[None, :],
            other=0.0,
        )
        inputs = tl.load(x + row[:, None] * INPUTS + column[None, :], mask=is_row[:, None] & there[None, :], other=0.0)
        sums += product(inputs, tl.trans(widened(weights, inputs.dtype)))
    place = (tl.program_id(1) * num_rows + row).to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(partial + place, sums, mask=is_row[:, None] & is_output[None, :])


@triton.jit
def nibble_linear(
    x,
    weight,
    scale,
    partial,
    num_rows,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same of int4 groups, scales included.

    weight [OUTPUTS, groups * GROUP / 2] uint8: byte k of a group holds the value + 8 of input k below and of input
    k + GROUP / 2 above. scale [OUTPUTS, groups] bfloat16. Inputs beyond INPUTS count as zero.
    """
    row = tl.arange(0, ROWS)
    output = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_output = row < num_rows, output < OUTPUTS
    HALF: tl.constexpr = GROUP // 2
    num_groups: tl.constexpr = (INPUTS + GROUP - 1) // GROUP
    first, last = tl.program_id(1) * num_groups // SPLITS, (tl.program_id(1) + 1) * num_groups // SPLITS
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for group in tl.range(first, last, num_stages=STAGES):
        byte = tl.arange(0, HALF)
        at = output.to(tl.int64)[:, None] * (num_groups * HALF) + group * HALF + byte[None, :]
        both = tl.load(weight + at, mask=is_output[:, None], other=0)
        scales = tl.load(scale + output.to(tl.int64) * num_groups + group, mask=is_output, other=0.0).to(tl.float32)
        low, high = group * GROUP + byte, group * GROUP + HALF + byte
        low_inputs = tl.load(
            x + row[:, None] * INPUTS + low[None, :], mask=is_row[:, None] & (low < INPUTS)[None, :], other=0.0
        )
        high_inputs = tl.load(
            x + row[:, None] * INPUTS + high[None, :], mask=is_row[:, None] & (high < INPUTS)[None, :], other=0.0
        )
        low_weights = ((both & 15).to(tl.int32) - 8).to(tl.float32).to(x.dtype.element_ty)
        high_weights = ((both >> 4).to(tl.int32) - 8).to(tl.float32).to(x.dtype.element_ty)
        part = product(low_inputs, tl.trans(low_weights)) + product(high_inputs, tl.trans(high_weights))
        sums += part * scales[None, :]
    place = (tl.program_id(1) * num_rows + row).to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(partial + place, sums, mask=is_row[:, None] & is_output[None, :])


@triton.jit
def finish(
    partial,
    scale,
    bias,
    out,
    num_rows,
    OUTPUTS: tl.constexpr,
    SPLITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    CAP: tl.constexpr,
):
    """Program (t, n): COLUMNS values of out[t] from its splits: times scale [OUTPUTS], plus bias, soft-capped.

    Where GATED, out is [num_rows, OUTPUTS / 2] = gelu_tanh(first half) * second half.
    """
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    WIDTH: tl.constexpr = OUTPUTS // 2 if GATED else OUTPUTS
    there = column < WIDTH
    value = _summed(partial, scale, row, column, there, num_rows, OUTPUTS, SPLITS, COLUMNS, HAS_SCALE)
    if GATED:
        up = _summed(partial, scale, row, column + WIDTH, there, num_rows, OUTPUTS, SPLITS, COLUMNS, HAS_SCALE)
        value = gelu_tanh(value) * up
    if HAS_BIAS:
        value += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)
    if CAP > 0:
        value = capped(value, CAP)
    tl.store(out + row.to(tl.int64) * WIDTH + column, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def _summed(
    partial, scale, row, column, there, num_rows,
    OUTPUTS: tl.constexpr, SPLITS: tl.constexpr, COLUMNS: tl.constexpr, HAS_SCALE: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([COLUMNS], tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + (split * num_rows + row).to(tl.int64) * OUTPUTS + column, mask=there, other=0.0)
    if HAS_SCALE:
        total *= tl.load(scale + column, mask=there, other=0.0)
    return total
