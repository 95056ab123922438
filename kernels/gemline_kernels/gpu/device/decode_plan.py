"""How the keys of decoding sequences are shared out among programs: on the device, so no step waits for the host."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_sequences"])
def plan_decode(
    context_len,
    items,
    first_item,
    num_sequences,
    SEQUENCES: tl.constexpr,
    ITEMS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    ITEM_BLOCK: tl.constexpr,
):
    """One program. Cuts what each sequence attends to, in tiles of TILE positions, into about equal pieces.

    context_len[B] int32, 0 for padding. items[ITEMS, 3] int32: sequence, first tile, tile after the last; sequence -1
    where there is none. first_item[B + 1] int32: sequence b owns the items [first_item[b], first_item[b + 1]). Pieces
    have the least number of tiles with which they fit into ITEMS (at least B), or CHUNK tiles when that is not 0: then
    a sequence is cut alike whatever is beside it. With a window only what it leaves is cut up.
    """
    b = tl.arange(0, SEQUENCES)
    length = tl.load(context_len + b, mask=b < num_sequences, other=0)
    start = length * 0
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0) // TILE
    num_tiles = (length + TILE - 1) // TILE - start
    low = 1 if CHUNK == 0 else CHUNK
    high = tl.maximum(tl.max(num_tiles, 0), 1) if CHUNK == 0 else CHUNK
    while low < high:
        middle = (low + high) // 2
        if tl.sum((num_tiles + middle - 1) // middle, 0) <= ITEMS:
            high = middle
        else:
            low = middle + 1
    num_pieces = (num_tiles + low - 1) // low
    stop_item = tl.cumsum(num_pieces, 0)
    tl.store(first_item + b + 1, stop_item, mask=b < num_sequences)
    tl.store(first_item, 0)
    for block in range(0, ITEMS, ITEM_BLOCK):
        item = block + tl.arange(0, ITEM_BLOCK)
        owner = tl.sum((stop_item[None, :] <= item[:, None]).to(tl.int32), 1)
        is_owner = b[None, :] == owner[:, None]
        piece = item - _of_owner(is_owner, stop_item - num_pieces)
        pieces = tl.maximum(_of_owner(is_owner, num_pieces), 1)
        tiles, first = _of_owner(is_owner, num_tiles), _of_owner(is_owner, start)
        there = item < ITEMS
        tl.store(items + item * 3, tl.where(owner < SEQUENCES, owner, -1), mask=there)
        tl.store(items + item * 3 + 1, first + piece * tiles // pieces, mask=there)
        tl.store(items + item * 3 + 2, first + (piece + 1) * tiles // pieces, mask=there)


@triton.jit
def _of_owner(is_owner, values):
    return tl.sum(tl.where(is_owner, values[None, :], 0), 1)
