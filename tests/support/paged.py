"""Ragged batches over a paged cache, and attention over the same keys laid out densely, in float64.

Every slot that must not count holds NaN, and every table entry that must not be read is far outside of the pool.
"""

from dataclasses import dataclass

import torch

from gemline_kernels.backend import Backend

_CPU = torch.device("cpu")


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


def build(case: Case, seed: int = 0, device: torch.device = _CPU) -> Paged:
    random = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device)

    size, longest = case.block_size, max(context for _, context in case.lengths)
    num_pages = -(-longest // size)
    num_blocks = num_pages * len(case.lengths) + 1
    order = torch.randperm(num_blocks, generator=random, device=device)
    table_BP = torch.full((len(case.lengths), num_pages), -1_000_000, device=device)
    pool_shape = (2, num_blocks, size, case.num_kv_heads, case.width)
    pools = torch.full(pool_shape, float("nan"), dtype=case.dtype, device=device)
    dense = []
    for sequence, (num_queries, context) in enumerate(case.lengths):
        both = (normal(2, context, case.num_kv_heads, case.width) * 4).to(case.dtype)
        first = 0 if case.window is None else max(0, context - num_queries - case.window + 1)
        positions = torch.arange(first, context, device=device)
        pages = positions // size
        table_BP[sequence, pages] = order[sequence * num_pages + pages]
        pools[:, table_BP[sequence, pages], positions % size] = both[:, first:]
        dense.append((both[0], both[1]))
    num_rows = sum(num_queries for num_queries, _ in case.lengths)
    query_THK = normal(num_rows, case.num_heads, case.width) * case.query_rms
    return Paged(query_THK.to(case.dtype), dense, pools[0], pools[1], table_BP)


def attend(backend: Backend, case: Case, paged: Paged) -> torch.Tensor:
    query_start, context_len = starts_and_lengths(case)
    return backend.paged_attention(
        paged.query_THK,
        paged.keys_NSGK,
        paged.values_NSGK,
        paged.block_table_BP,
        query_start,
        context_len,
        window=case.window,
        scale=case.scale,
        cap=case.cap,
    )


def starts_and_lengths(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """query_start and context_len, on the CPU."""
    num_queries, contexts = (torch.tensor(numbers) for numbers in zip(*case.lengths, strict=True))
    return torch.cat((torch.zeros(1, dtype=torch.int64), num_queries.cumsum(0))), contexts


def by_hand(case: Case, paged: Paged) -> torch.Tensor:
    """In float64, one sequence and one head at a time."""
    query_THK = paged.query_THK.double()
    out_THK = torch.empty_like(query_THK)
    repeats, start = case.num_heads // case.num_kv_heads, 0
    for (num_queries, context), (keys, values) in zip(case.lengths, paged.dense, strict=True):
        key = torch.arange(context, device=keys.device)
        position = key[context - num_queries :, None]
        hidden = key > position
        if case.window is not None:
            hidden |= key <= position - case.window
        for head in range(case.num_heads):
            scores = query_THK[start : start + num_queries, head] @ keys[:, head // repeats].double().T * case.scale
            scores = scores if case.cap is None else case.cap * torch.tanh(scores / case.cap)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(1)
            out_THK[start : start + num_queries, head] = weights @ values[:, head // repeats].double()
        start += num_queries
    return out_THK
