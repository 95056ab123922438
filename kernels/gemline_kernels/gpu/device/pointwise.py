"""Norms, rotation and the gated activation: what lies between the matrix products."""

import triton
import triton.language as tl


@triton.jit
def normed(x, weight, eps, width):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) of one float32 row, zero beyond `width`."""
    return x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * (1.0 + weight)


@triton.jit
def rms_norm(x, weight, out, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Program t: out[t] = normed(x[t]). COLUMNS is WIDTH or the next power of two."""
    column = tl.arange(0, COLUMNS)
    there = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    weights = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, normed(values, weights, eps, WIDTH).to(out.dtype.element_ty), mask=there)


@triton.jit
def add_norm(
    x, residual, post_weight, next_weight, new, out, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Program t: new[t] = residual[t] + normed(x[t]) rounded, out[t] = normed(new[t]) for the next half."""
    column = tl.arange(0, COLUMNS)
    there = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    before = tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    post = tl.load(post_weight + column, mask=there, other=0.0).to(tl.float32)
    after = tl.load(next_weight + column, mask=there, other=0.0).to(tl.float32)
    rounded = (before + normed(values, post, eps, WIDTH)).to(new.dtype.element_ty)
    tl.store(new + at, rounded, mask=there)
    stream = tl.where(there, rounded.to(tl.float32), 0.0)
    tl.store(out + at, normed(stream, after, eps, WIDTH).to(out.dtype.element_ty), mask=there)


@triton.jit
def embed(
    token_ids, weight, first_weight, residual, out, scale, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Program t: residual[t] = weight[token_ids[t]] * scale rounded, out[t] = normed(residual[t])."""
    column = tl.arange(0, COLUMNS)
    there = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    token_id = tl.load(token_ids + tl.program_id(0)).to(tl.int64)
    values = tl.load(weight + token_id * WIDTH + column, mask=there, other=0.0).to(tl.float32)
    first = tl.load(first_weight + column, mask=there, other=0.0).to(tl.float32)
    rounded = (values * scale).to(residual.dtype.element_ty)
    tl.store(residual + at, rounded, mask=there)
    stream = tl.where(there, rounded.to(tl.float32), 0.0)
    tl.store(out + at, normed(stream, first, eps, WIDTH).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def rope_write(
    projected,
    cos,
    sin,
    positions,
    slots,
    query,
    keys,
    values,
    key_factor,
    value_factor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Program (t, h): head h of token t, of HEADS queries, then GROUPS keys, then GROUPS values.

    A query is rotated into query [T, HEADS, WIDTH], a key is rotated and a value written as it is into slot slots[t] of
    keys and values [slots, GROUPS, WIDTH], times its factor where those are fp8; slot -1 is nowhere. Dimension k turns
    with k + WIDTH / 2 by the angle of row positions[t] of cos and sin [P, WIDTH / 2].
    """
    token, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, WIDTH // 2)
    source = projected + (token.to(tl.int64) * (HEADS + 2 * GROUPS) + head) * WIDTH + half
    first, second = tl.load(source).to(tl.float32), tl.load(source + WIDTH // 2).to(tl.float32)
    if head < HEADS + GROUPS:
        angle = tl.load(positions + token).to(tl.int64) * (WIDTH // 2) + half
        cosine, sine = tl.load(cos + angle), tl.load(sin + angle)
        turned = first * cosine - second * sine
        second = second * cosine + first * sine
        first = turned
    if head < HEADS:
        target = query + (token.to(tl.int64) * HEADS + head) * WIDTH + half
        tl.store(target, first.to(query.dtype.element_ty))
        tl.store(target + WIDTH // 2, second.to(query.dtype.element_ty))
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            if head < HEADS + GROUPS:
                target = keys + (slot * GROUPS + head - HEADS) * WIDTH + half
                tl.store(target, (first * key_factor).to(keys.dtype.element_ty))
                tl.store(target + WIDTH // 2, (second * key_factor).to(keys.dtype.element_ty))
            else:
                target = values + (slot * GROUPS + head - HEADS - GROUPS) * WIDTH + half
                tl.store(target, (first * value_factor).to(values.dtype.element_ty))
                tl.store(target + WIDTH // 2, (second * value_factor).to(values.dtype.element_ty))


@triton.jit
def gelu_tanh(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-2z) for that argument z of tanh."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def geglu(gate_up, out, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Program (t, c): columns c * COLUMNS on of out[t] = gelu_tanh(gate) * up; gate_up [T, 2 WIDTH], gate first."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, (gelu_tanh(gate) * up).to(out.dtype.element_ty), mask=there)


@triton.jit
def capped(x, CAP: tl.constexpr):
    """CAP tanh(x / CAP), by tanh(y) = 1 - 2 / (1 + e^2y)."""
    return (1.0 - 2.0 / (1.0 + tl.exp(x * (2.0 / CAP)))) * CAP


@triton.jit
def softcap(x, out, num_values, CAP: tl.constexpr, COLUMNS: tl.constexpr):
    """Program c: values c * COLUMNS on of out, float32: x, capped where CAP > 0."""
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    value = tl.load(x + at, mask=at < num_values, other=0.0).to(tl.float32)
    if CAP > 0:
        value = capped(value, CAP)
    tl.store(out + at, value, mask=at < num_values)
