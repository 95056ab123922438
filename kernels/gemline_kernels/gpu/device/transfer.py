"""Keys and values between a pool and one piece of memory to be sent, or that was received."""

import triton
import triton.language as tl


@triton.jit
def pack(
    keys, values, slots, out, first_group, groups, num_tokens, key_factor, value_factor,
    POOL_GROUPS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Program (t, g, plane): out[plane, tokens, g] = keys or values of slots[tokens], group first_group + g, scaled.

    keys and values [slots, POOL_GROUPS, WIDTH]; out [2, num_tokens, groups, WIDTH] in any dtype.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    group, plane, column = tl.program_id(1), tl.program_id(2), tl.arange(0, WIDTH)
    there = token < num_tokens
    slot = tl.load(slots + token, mask=there, other=0).to(tl.int64)
    source = (slot * POOL_GROUPS + first_group + group)[:, None] * WIDTH + column[None, :]
    target = ((plane.to(tl.int64) * num_tokens + token) * groups + group)[:, None] * WIDTH + column[None, :]
    if plane == 0:
        moved = tl.load(keys + source, mask=there[:, None], other=0.0).to(tl.float32) * key_factor
    else:
        moved = tl.load(values + source, mask=there[:, None], other=0.0).to(tl.float32) * value_factor
    tl.store(out + target, moved.to(out.dtype.element_ty), mask=there[:, None])


@triton.jit
def unpack(
    packed, keys, values, slots, first_group, groups, num_tokens, key_factor, value_factor,
    POOL_GROUPS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """The way back: packed [2, num_tokens, groups, WIDTH] into the groups from first_group on of those slots."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    group, plane, column = tl.program_id(1), tl.program_id(2), tl.arange(0, WIDTH)
    there = token < num_tokens
    slot = tl.load(slots + token, mask=there, other=0).to(tl.int64)
    target = (slot * POOL_GROUPS + first_group + group)[:, None] * WIDTH + column[None, :]
    source = ((plane.to(tl.int64) * num_tokens + token) * groups + group)[:, None] * WIDTH + column[None, :]
    moved = tl.load(packed + source, mask=there[:, None], other=0.0).to(tl.float32)
    if plane == 0:
        tl.store(keys + target, (moved * key_factor).to(keys.dtype.element_ty), mask=there[:, None])
    else:
        tl.store(values + target, (moved * value_factor).to(values.dtype.element_ty), mask=there[:, None])
