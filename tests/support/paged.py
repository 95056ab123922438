"""Ragged batches over a paged cache, and attention over the same keys laid out densely, in float64.

Every slot that must not count holds NaN, and every table entry that must not be read is far outside of the pool.
"""

from dataclasses import dataclass

import torch

from gemline_kernels.backend import Backend


@dataclass(frozen=True)
class Case:
    """A ragged batch: (number of queries, context length) of each sequence, and the layer's constants."""

    lengths: tuple[tuple[int, int], ...]
    window: int | None = None
    cap: float | None = 50.0
    scale: float = 0.3
    num_heads: int = 4
    num_kv_heads: int = 2
    width: int = 16
    block_size: int = 4
    dtype: torch.dtype = torch.float32
    query_rms: float = 4.0


@dataclass(frozen=True)
class Paged:
    """The same keys and values twice: dense, and in blocks of a pool, scattered and poisoned."""

    query_THK: torch.Tensor
    dense: list[tuple[torch.Tensor, torch.Tensor]]
    keys_NSGK: torch.Tensor
    values_NSGK: torch.Tensor
    block_table_BP: torch.Tensor


def build(case: Case, seed: int = 0) -> Paged:
    random = torch.Generator().manual_seed(seed)
    size, longest = case.block_size, max(context for _, context in case.lengths)
    num_pages = -(-longest // size)
    num_blocks = num_pages * len(case.lengths) + 1
    order = torch.randperm(num_blocks, generator=random)
    table_BP = torch.full((len(case.lengths), num_pages), -1_000_000)
    pools = torch.full((2, num_blocks, size, case.num_kv_heads, case.width), float("nan"), dtype=case.dtype)
    dense = []
    for sequence, (num_queries, context) in enumerate(case.lengths):
        shape = (2, context, case.num_kv_heads, case.width)
        both = (torch.randn(shape, generator=random) * 4).to(case.dtype)
        first = 0 if case.window is None else max(0, context - num_queries - case.window + 1)
        for position in range(first, context):
            block = int(order[sequence * num_pages + position // size])
            table_BP[sequence, position // size] = block
            pools[:, block, position % size] = both[:, position]
        dense.append((both[0], both[1]))
    num_rows = sum(num_queries for num_queries, _ in case.lengths)
    query_THK = torch.randn(num_rows, case.num_heads, case.width, generator=random) * case.query_rms
    return Paged(query_THK.to(case.dtype), dense, pools[0], pools[1], table_BP)


def attend(backend: Backend, case: Case, paged: Paged) -> torch.Tensor:
    query_start = [0]
    for num_queries, _ in case.lengths:
        query_start.append(query_start[-1] + num_queries)
    return backend.paged_attention(
        paged.query_THK,
        paged.keys_NSGK,
        paged.values_NSGK,
        paged.block_table_BP,
        torch.tensor(query_start),
        torch.tensor([context for _, context in case.lengths]),
        window=case.window,
        scale=case.scale,
        cap=case.cap,
    )


def by_hand(case: Case, paged: Paged) -> torch.Tensor:
    """In float64, one query and one head at a time."""
    rows, row = [], 0
    for (num_queries, context), (keys, values) in zip(case.lengths, paged.dense, strict=True):
        for position in range(context - num_queries, context):
            first = 0 if case.window is None else max(0, position - case.window + 1)
            heads = []
            for head in range(case.num_heads):
                group = head // (case.num_heads // case.num_kv_heads)
                seen = slice(first, position + 1)
                scores = keys[seen, group].double() @ paged.query_THK[row, head].double() * case.scale
                scores = scores if case.cap is None else case.cap * torch.tanh(scores / case.cap)
                heads.append(scores.softmax(0) @ values[seen, group].double())
            rows.append(torch.stack(heads))
            row += 1
    return torch.stack(rows)
