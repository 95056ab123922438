"""Tiles of keys and values against some rows of queries: what decode and prefill attention have in common."""

import triton
import triton.language as tl

from gemline_kernels.gpu.device.scores import capped_weights, product, widened


@triton.jit
def attend(
    queries, keys, values, offsets, blocks, first, last, position, start, stop, sums, out, scale,
    MASKED: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`sums` [ROWS] and `out` [ROWS, WIDTH] with the weights, and weight * value, of the tiles [first, last) added.

    `blocks` points to the sequence's row of the block table; `offsets` [TILE, WIDTH] are those of a tile's elements
    from its first slot on. Where MASKED, a key counts for a row at `position` [ROWS] if it is not after it and within
    its window, and none outside [start, stop) is read; otherwise every key counts for every row. Weights are rounded
    to the queries' dtype before they are summed, so that numerator and denominator agree.
    """
    # A tile's block is looked up a tile ahead: a load that another load waits for costs Triton its pipeline.
    block = tl.load(blocks + first * TILE // BLOCK_SIZE, mask=first < last, other=0)
    for tile in tl.range(first, last, num_stages=STAGES):
        at = (block.to(tl.int64) * BLOCK_SIZE + tile * TILE % BLOCK_SIZE) * (GROUPS * WIDTH) + offsets
        block = tl.load(blocks + (tile + 1) * TILE // BLOCK_SIZE, mask=tile + 1 < last, other=0)
        if MASKED:
            key = tile * TILE + tl.arange(0, TILE)
            is_read = (key >= start) & (key < stop)
            tile_keys = tl.load(keys + at, mask=is_read[:, None], other=0.0)
        else:
            tile_keys = tl.load(keys + at)
        weights = capped_weights(product(queries, tl.trans(widened(tile_keys, queries.dtype))), scale, CAP)
        # Values come once keys are done with: a tile of fp8 with a window needs every register there is.
        if MASKED:
            is_seen = is_read[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                is_seen = is_seen & (position[:, None] - key[None, :] < WINDOW)
            weights = tl.where(is_seen, weights, 0.0)
            tile_values = tl.load(values + at, mask=is_read[:, None], other=0.0)
        else:
            tile_values = tl.load(values + at)
        rounded = weights.to(queries.dtype)
        sums += tl.sum(rounded.to(tl.float32), 1)
        out += product(rounded, widened(tile_values, queries.dtype))
    return sums, out
