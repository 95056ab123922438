"""Attention of the new tokens of a ragged batch over a paged cache that holds their own keys and values already."""

import triton
import triton.language as tl

from gemline_kernels.gpu.device.tile import attend


@triton.jit(do_not_specialize=["table_width"])
def prefill_attention(
    query,
    keys,
    values,
    table,
    query_start,
    context_len,
    items,
    out,
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
    """Program (i, g): the ROWS // REPEATS tokens of one sequence from items[i] on, all heads that read KV head g.

    A row is a token and one of its heads, so that keys are read once for all heads of a group. query and out [T,
    GROUPS * REPEATS, WIDTH]; keys and values [N, BLOCK_SIZE, GROUPS, WIDTH]; table [B, table_width], query_start
    [B + 1], context_len [B] and items [I, 2] (sequence, token of its new ones) int32. TILE divides BLOCK_SIZE.
    """
    item, group = tl.program_id(0), tl.program_id(1)
    sequence, first_token = tl.load(items + item * 2), tl.load(items + item * 2 + 1)
    first_row = tl.load(query_start + sequence)
    num_tokens = tl.load(query_start + sequence + 1) - first_row
    num_before = tl.load(context_len + sequence) - num_tokens
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    token = first_token + row // REPEATS
    is_row = (token < num_tokens) & (row < ROWS // REPEATS * REPEATS)
    first_at = (first_row + first_token).to(tl.int64) * (GROUPS * REPEATS * WIDTH)
    head = group * REPEATS + row % REPEATS
    at = (row // REPEATS * (GROUPS * REPEATS) + head)[:, None] * WIDTH + column[None, :]
    queries = tl.load(query + first_at + at, mask=is_row[:, None], other=0.0)
    offsets = tl.arange(0, TILE)[:, None] * (GROUPS * WIDTH) + group * WIDTH + column[None, :]
    blocks = table + sequence.to(tl.int64) * table_width
    position = num_before + token
    earliest = num_before + first_token
    latest = num_before + tl.minimum(first_token + ROWS // REPEATS, num_tokens) - 1
    start, latest_start, stop = 0, 0, latest + 1
    if WINDOW > 0:
        start = tl.maximum(earliest - WINDOW + 1, 0)
        latest_start = tl.maximum(latest - WINDOW + 1, 0)
    first, last = start // TILE, (stop + TILE - 1) // TILE
    # Tiles that every row sees all of need no mask: between the window's edge and the diagonal.
    whole_first = tl.minimum((latest_start + TILE - 1) // TILE, last)
    whole_last = tl.maximum((earliest + 1) // TILE, whole_first)
    sums = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    sums, total = attend(
        queries, keys, values, offsets, blocks, first, whole_first, position, start, stop, sums, total, scale,
        True, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, 1,
    )  # fmt: skip
    sums, total = attend(
        queries, keys, values, offsets, blocks, whole_first, whole_last, position, start, stop, sums, total, scale,
        False, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, STAGES,
    )  # fmt: skip
    sums, total = attend(
        queries, keys, values, offsets, blocks, whole_last, last, position, start, stop, sums, total, scale,
        True, GROUPS, WIDTH, BLOCK_SIZE, TILE, WINDOW, CAP, 1,
    )  # fmt: skip
    result = total * (value_scale / tl.where(is_row, sums, 1.0))[:, None]
    tl.store(out + first_at + at, result.to(out.dtype.element_ty), mask=is_row[:, None])
