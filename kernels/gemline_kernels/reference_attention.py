"""Attention over a paged cache in plain torch: what `paged_attention` of every backend must give, on any device."""

from typing import NamedTuple

import torch

from gemline_kernels.scales import UNSCALED, Scales

_TILE_SCORES = 2**22  # float32 scores of one tile: 16 MiB, so that a long prompt's scores are never all there at once


def softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(x / cap); x itself when there is no cap."""
    return x if cap is None else (x / cap).tanh_().mul_(cap)


def paged_attention(
    query_THK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    block_table_BP: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    scales: Scales = UNSCALED,
) -> torch.Tensor:
    """out_THK = softmax(softcap(scale * query . keys)) . values over the keys each query sees; float32 inside.

    Sequence b owns the query rows [query_start[b], query_start[b + 1]); they are its last positions, the last of them
    context_len[b] - 1. The query at position i sees the keys at positions j with i - window < j <= i (all j <= i
    without a window); position j lies in block block_table_BP[b, j // S], offset j % S. Query head h reads KV head
    h // (H / G). Keys and values are what the pools hold times their scales. A slot that no query of its sequence sees
    has no influence, whatever it holds, and table entries of blocks with such slots only may be anything. query_start
    (B + 1) and context_len (B) are int64 and on the CPU.
    """
    pools = _Pools(_Pool(keys_NSGK, scales.keys), _Pool(values_NSGK, scales.values), block_table_BP)
    out_THK = torch.empty_like(query_THK)
    decoding, tiles = _split(query_start.tolist(), context_len.tolist(), window, query_THK.shape[1])
    for group in decoding:
        rows = torch.tensor([tile.start for tile in group], device=query_THK.device)
        out_THK[rows] = _attend_one_each(query_THK[rows], pools, group, scale, cap)
    for tile in tiles:
        out_THK[tile.start : tile.stop] = _attend_tile(
            query_THK[tile.start : tile.stop], pools, tile, window, scale, cap
        )
    return out_THK


class _Pool(NamedTuple):
    stored_NSGK: torch.Tensor
    scale: float

    def read(self, stored: torch.Tensor) -> torch.Tensor:
        """What some of it stands for, float32."""
        return stored.float() if self.scale == 1.0 else stored.float() * self.scale


class _Pools(NamedTuple):
    keys: _Pool
    values: _Pool
    block_table_BP: torch.Tensor


class _Tile(NamedTuple):
    """Queries of one sequence, rows [start, stop) of T, and the positions [first_key, last_key) they see together."""

    sequence: int
    start: int
    stop: int
    first_key: int
    last_key: int


class _Work(NamedTuple):
    decoding: list[list[_Tile]]  # groups of one-query tiles with about as many keys each
    tiles: list[_Tile]


def _split(query_start: list[int], context_len: list[int], window: int | None, num_heads: int) -> _Work:
    """One-query sequences by the power of two their number of keys is under; the others cut into tiles."""
    groups: dict[int, list[_Tile]] = {}
    tiles: list[_Tile] = []
    for sequence, stop in enumerate(context_len):
        first_row, num_rows = query_start[sequence], query_start[sequence + 1] - query_start[sequence]
        num_keys = max(1, min(stop, (window or stop) + num_rows))
        step = max(1, _TILE_SCORES // (num_heads * num_keys))
        for row in range(0, num_rows, step):
            rows = min(step, num_rows - row)
            position = stop - num_rows + row  # of the tile's first query
            first_key = 0 if window is None else max(0, position - window + 1)
            tile = _Tile(sequence, first_row + row, first_row + row + rows, first_key, position + rows)
            if num_rows == 1:
                groups.setdefault((stop - first_key).bit_length(), []).append(tile)
            else:
                tiles.append(tile)
    lone = [group[0] for group in groups.values() if len(group) == 1]
    return _Work([group for group in groups.values() if len(group) > 1], tiles + lone)


def _attend_tile(
    query_THK: torch.Tensor, pools: _Pools, tile: _Tile, window: int | None, scale: float, cap: float | None
) -> torch.Tensor:
    """Attention of one tile; J stands for its keys, R for the query heads of one KV head."""
    keys_JGK, values_JGK = (_gather_range(pool, pools.block_table_BP, tile) for pool in pools[:2])
    num_rows, num_heads, width = query_THK.shape
    num_keys, num_groups = keys_JGK.shape[:2]
    query_GRTK = query_THK.float().view(num_rows, num_groups, -1, width).permute(1, 2, 0, 3)
    query_GMK = query_GRTK.reshape(num_groups, -1, width)  # M = R * T
    scores_GMJ = softcap(query_GMK @ keys_JGK.permute(1, 2, 0) * scale, cap)
    if num_rows > 1:
        hidden_TJ = _hidden_keys(num_rows, num_keys, window, query_THK.device)
        scores_GMJ.view(num_groups, -1, num_rows, num_keys).masked_fill_(hidden_TJ, float("-inf"))
    out_GMK = scores_GMJ.softmax(-1) @ values_JGK.transpose(0, 1)
    out_THK = out_GMK.view(num_groups, -1, num_rows, width).permute(2, 0, 1, 3).reshape(num_rows, num_heads, width)
    return out_THK.to(query_THK.dtype)


def _hidden_keys(num_rows: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """hidden_TJ: true where a row must not see a key; the last row stands at the last key."""
    hidden_TJ = torch.ones(num_rows, num_keys, dtype=torch.bool, device=device).triu_(num_keys - num_rows + 1)
    if window is not None:
        hidden_TJ |= torch.ones_like(hidden_TJ).tril_(num_keys - num_rows - window)
    return hidden_TJ


def _gather_range(pool: _Pool, block_table_BP: torch.Tensor, tile: _Tile) -> torch.Tensor:
    """The tile's keys (or values) in order of position, [J, G, K] float32, copied block by block."""
    block_size = pool.stored_NSGK.shape[1]
    first_block, last_block = tile.first_key // block_size, -(-tile.last_key // block_size)
    blocks = block_table_BP[tile.sequence, first_block:last_block]
    skipped = first_block * block_size
    slots_MGK = pool.stored_NSGK.index_select(0, blocks).flatten(0, 1)
    return pool.read(slots_MGK[tile.first_key - skipped : tile.last_key - skipped])


def _attend_one_each(
    query_BHK: torch.Tensor, pools: _Pools, group: list[_Tile], scale: float, cap: float | None
) -> torch.Tensor:
    """Attention of many one-query tiles at once, each padded to the longest with copies of its own last key."""
    slots_BJ, hidden_BJ = _padded_slots(pools, group)
    keys_BJGK, values_BJGK = (_gather_slots(pool, slots_BJ) for pool in pools[:2])
    num_sequences, num_heads, width = query_BHK.shape
    num_groups = keys_BJGK.shape[2]
    query_BGRK = query_BHK.float().view(num_sequences, num_groups, -1, width)
    outs_BRK = []
    for head in range(num_groups):  # a product over all heads at once would first copy every key to reorder them
        keys_BJK, values_BJK = keys_BJGK[:, :, head], values_BJGK[:, :, head]
        scores_BRJ = softcap(query_BGRK[:, head] @ keys_BJK.transpose(1, 2) * scale, cap)
        scores_BRJ.masked_fill_(hidden_BJ[:, None], float("-inf"))
        outs_BRK.append(scores_BRJ.softmax(-1) @ values_BJK)
    return torch.stack(outs_BRK, dim=1).view(num_sequences, num_heads, width).to(query_BHK.dtype)


def _gather_slots(pool: _Pool, slots_BJ: torch.Tensor) -> torch.Tensor:
    """Keys (or values) of those slots, [B, J, G, K] float32."""
    slots_MGK = pool.stored_NSGK.flatten(0, 1)
    rows = slots_MGK.flatten(1).index_select(0, slots_BJ.flatten())  # whole rows are copied much faster than elements
    return pool.read(rows.view(*slots_BJ.shape, *slots_MGK.shape[1:]))


class _Padded(NamedTuple):
    slots_BJ: torch.Tensor
    hidden_BJ: torch.Tensor  # true on padding


def _padded_slots(pools: _Pools, group: list[_Tile]) -> _Padded:
    device, block_size = pools.block_table_BP.device, pools.keys.stored_NSGK.shape[1]
    sequence, first_key, last_key = (
        torch.tensor(numbers, device=device)[:, None]
        for numbers in zip(*((tile.sequence, tile.first_key, tile.last_key) for tile in group), strict=True)
    )
    longest = max(tile.last_key - tile.first_key for tile in group)
    positions_BJ = first_key + torch.arange(longest, device=device)
    hidden_BJ = positions_BJ >= last_key
    positions_BJ = torch.minimum(positions_BJ, last_key - 1)
    slots_BJ = pools.block_table_BP[sequence, positions_BJ // block_size] * block_size + positions_BJ % block_size
    return _Padded(slots_BJ, hidden_BJ)
