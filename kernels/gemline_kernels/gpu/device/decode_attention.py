"""Attention of one query per sequence over a paged cache, its keys shared out by `plan_decode`."""

import triton
import triton.language as tl

from gemline_kernels.gpu.device.tile import attend


@triton.jit(do_not_specialize=["table_width"])
def decode_attention(
    query,
    keys,
    values,
    table,
    context_len,
    query_row,
    items,
    partial_out,
    partial_sum,
    scale,
    value_scale,
    table_width,
    GROUPS: tl.constexpr,
    REPEATS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (i, g): item i's tiles of KV head g, for the REPEATS query heads that read it, padded to ROWS.

    query [T, GROUPS * REPEATS, WIDTH], of which sequence b's is row query_row[b]; keys and values [N, BLOCK_SIZE,
    GROUPS, WIDTH]; table [B, table_width] int32. TILE divides BLOCK_SIZE. Of the item it leaves partial_sum [I, GROUPS,
    REPEATS], the sum of its weights, and partial_out [I, GROUPS, REPEATS, WIDTH], that of weight * value, float32. The
    scale of fp8 keys belongs into `scale`. Weights are rounded to the query's dtype before they are summed, so that
    numerator and denominator agree.
    """
    item, group = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(items + item * 3)
    if sequence < 0:
        return
    first, last = tl.load(items + item * 3 + 1), tl.load(items + item * 3 + 2)
    length = tl.load(context_len + sequence)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0)
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_row = row < REPEATS
    head = group * REPEATS + row
    query_at = tl.load(query_row + sequence).to(tl.int64) * (GROUPS * REPEATS) + head
    queries = tl.load(query + query_at[:, None] * WIDTH + column[None, :], mask=is_row[:, None], other=0.0)
    offsets = tl.arange(0, TILE)[:, None] * (GROUPS * WIDTH) + group * WIDTH + column[None, :]
    blocks = table + sequence.to(tl.int64) * table_width
    position = tl.full([ROWS], 0, tl.int32) + length - 1
    sums = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    # Whole tiles, which need no mask, and at most one at either end that does.
    whole_first = tl.minimum(tl.maximum(first, (start + TILE - 1) // TILE), last)
    whole_last = tl.maximum(tl.minimum(last, length // TILE), whole_first)
    sums, out = attend(
        queries, keys, values, offsets, blocks, first, whole_first, position, start, length, sums, out, scale,
        True, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, 1,
    )  # fmt: skip
    sums, out = attend(
        queries, keys, values, offsets, blocks, whole_first, whole_last, position, start, length, sums, out, scale,
        False, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, STAGES,
    )  # fmt: skip
    sums, out = attend(
        queries, keys, values, offsets, blocks, whole_last, last, position, start, length, sums, out, scale,
        True, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, 1,
    )  # fmt: skip
    place = (item * GROUPS + group) * REPEATS + row
    tl.store(partial_sum + place, sums, mask=is_row)
    tl.store(partial_out + place[:, None] * WIDTH + column[None, :], out * value_scale, mask=is_row[:, None])


@triton.jit
def combine(
    partial_out,
    partial_sum,
    first_item,
    query_row,
    out,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """Program (b, h): out[query_row[b], h] from the items of sequence b, always added up in the same way.

    Padding has no item.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(first_item + sequence), tl.load(first_item + sequence + 1)
    if first == last:
        return
    column = tl.arange(0, WIDTH)
    total = tl.zeros([WIDTH], tl.float32)
    weight = 0.0
    for block in range(first, last, ITEMS):
        item = block + tl.arange(0, ITEMS)
        there, place = item < last, item * HEADS + head
        weight += tl.sum(tl.load(partial_sum + place, mask=there, other=0.0), 0)
        parts = tl.load(partial_out + place[:, None] * WIDTH + column[None, :], mask=there[:, None], other=0.0)
        total += tl.sum(parts, 0)
    row = tl.load(query_row + sequence).to(tl.int64)
    tl.store(out + (row * HEADS + head) * WIDTH + column, (total / weight).to(out.dtype.element_ty))
