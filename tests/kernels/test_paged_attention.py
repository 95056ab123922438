"""Paged attention against attention over dense tensors in float64; every slot that must not count holds NaN."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from gemline_kernels.reference import paged_attention


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared out, most of all while other processes run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class Case:
    """A ragged batch: (number of queries, context length) of each sequence, and the layer's constants."""

    lengths: tuple[tuple[int, int], ...]
    window: int | None = None
    cap: float | None = 50.0
    scale: float = 0.3
    num_heads: int = 4
    num_kv_heads: int = 2
    width: int = 6
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


def attend(case: Case, paged: Paged) -> torch.Tensor:
    query_start = [0]
    for num_queries, _ in case.lengths:
        query_start.append(query_start[-1] + num_queries)
    return paged_attention(
        paged.query_THK,
        paged.keys_NSGK,
        paged.values_NSGK,
        paged.block_table_BP,
        query_start,
        [context for _, context in case.lengths],
        window=case.window,
        scale=case.scale,
        cap=case.cap,
    )


def by_hand(case: Case, paged: Paged) -> torch.Tensor:
    """One query and one head at a time."""
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


def check(case: Case, seed: int = 0) -> None:
    paged = build(case, seed)
    actual, tolerance = attend(case, paged), 1e-4 if case.dtype == torch.float32 else 0.1
    assert actual.dtype == case.dtype
    assert_close(actual.double(), by_hand(case, paged), rtol=0, atol=tolerance)


lengths = st.integers(1, 30).flatmap(lambda context: st.tuples(st.integers(1, context) | st.just(1), st.just(context)))


@settings(max_examples=150, deadline=None)
@given(
    case=st.builds(
        Case,
        lengths=st.lists(lengths, min_size=1, max_size=5).map(tuple),
        window=st.none() | st.integers(1, 31),
        cap=st.none() | st.just(50.0),
        num_heads=st.sampled_from([4, 8]),
        num_kv_heads=st.sampled_from([1, 2, 4]),
        block_size=st.sampled_from([1, 3, 4, 16]),
    ),
    seed=st.integers(0, 1000),
)
def test_every_ragged_batch_agrees_with_dense_attention(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.parametrize("context", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 7])
def test_lengths_around_a_block_boundary_agree(context: int, window: int | None) -> None:
    check(Case(((1, context), (1, context + 1), (context, context), (2, context + 4)), window))


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_window_holds_exactly_that_many_keys(num_queries: int) -> None:
    """The first query stands at position p: the key at p - window + 1 counts, the one before it does not."""
    case = Case(((num_queries, 12),), window=5)
    paged = build(Case(case.lengths, window=None))
    before, edge = 12 - num_queries - 5, 12 - num_queries - 4
    expected = attend(case, paged)
    for position, counts in ((before, False), (edge, True)):
        block = paged.block_table_BP[0, position // 4]
        saved = paged.values_NSGK[block, position % 4].clone()
        paged.values_NSGK[block, position % 4] += 1e6
        assert attend(case, paged)[0].equal(expected[0]) is not counts
        paged.values_NSGK[block, position % 4] = saved


def test_many_decoding_sequences_of_very_different_lengths_agree() -> None:
    check(Case(tuple((1, context) for context in (1, 1, 2, 3, 9, 17, 30, 33, 64, 65, 130)), window=40))


def test_a_prompt_of_many_tiles_agrees() -> None:
    """600 queries over 1200 keys of 8 heads are more scores than one tile holds."""
    case = Case(((600, 1200),), window=None, num_heads=8, width=4, block_size=16, query_rms=1.0)
    paged = build(case)
    last = Case(((1, 1200),), num_heads=8, width=4, block_size=16)
    alone = Paged(paged.query_THK[-1:], paged.dense, paged.keys_NSGK, paged.values_NSGK, paged.block_table_BP)
    assert_close(attend(case, paged)[-1:].double(), by_hand(last, alone), rtol=0, atol=1e-4)
    first = Case(((1, 601),), num_heads=8, width=4, block_size=16)
    prefix = [(keys[:601], values[:601]) for keys, values in paged.dense]
    alone = Paged(paged.query_THK[:1], prefix, paged.keys_NSGK, paged.values_NSGK, paged.block_table_BP)
    assert_close(attend(case, paged)[:1].double(), by_hand(first, alone), rtol=0, atol=1e-4)


def test_the_cap_matters_for_these_inputs() -> None:
    """Otherwise an attention that forgets the cap would pass every other test here."""
    capped, free = Case(((5, 20), (1, 20))), Case(((5, 20), (1, 20)), cap=None)
    assert (attend(capped, build(capped)) - attend(free, build(free))).abs().max() > 0.1


def test_bfloat16_is_computed_in_float32_inside() -> None:
    check(Case(((5, 20), (1, 9), (1, 20)), dtype=torch.bfloat16, window=7))


def test_a_nan_in_one_sequence_stays_there() -> None:
    case = Case(((1, 9), (1, 10), (3, 8)))
    paged = build(case)
    expected = attend(case, paged)
    paged.values_NSGK[paged.block_table_BP[0, 1], 2] = float("nan")
    actual = attend(case, paged)
    assert actual[0].isnan().all()
    assert actual[1:].equal(expected[1:])
