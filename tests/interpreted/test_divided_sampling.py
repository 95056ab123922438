"""Tokens from a vocabulary divided among ranks: those that one device draws from whole rows, and little crosses."""

import pytest
import torch
from interpreted.test_sampling import Row, choose
from support.thread_ranks import ThreadRanks, together

from gemline_kernels.vocabulary import Vocabulary

KINDS = (
    Row(),
    Row(temperature=0.0),
    Row(temperature=3.0),
    Row(top_k=1),
    Row(top_k=7),
    Row(top_p=0.9),
    Row(top_p=0.999),
    Row(min_p=0.05),
    Row(top_k=50, top_p=0.8, min_p=0.02, temperature=1.7),
)


def rows_of_all_kinds() -> list[Row]:
    return [Row(**kind.__dict__ | {"seed": 2**64 - 1 - at, "position": 2**33 + at}) for at, kind in enumerate(KINDS)]


def choose_among(num_ranks: int, logits_BV: torch.Tensor, rows: list[Row], chunk: int = 64) -> list[int]:
    """What all ranks say."""

    def run(ranks: ThreadRanks) -> list[int]:
        part = Vocabulary(logits_BV.shape[1], ranks)
        return choose(logits_BV[:, part.tokens.start : part.tokens.stop].contiguous(), rows, chunk, part)

    first, *others = together(num_ranks, run)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ranks_choose_what_one_device_does(num_ranks: int) -> None:
    """Of a vocabulary that no degree divides, in chunks that no share is a multiple of."""
    torch.manual_seed(num_ranks)
    rows = rows_of_all_kinds()
    logits_BV = torch.randn(len(rows), 331) * 3
    assert choose_among(num_ranks, logits_BV, rows) == choose(logits_BV, rows)


def test_ranks_choose_alike_where_many_logits_are_equal() -> None:
    """The edge then runs through tokens of several ranks, of which those of lower id stay."""
    torch.manual_seed(0)
    rows = [Row(top_k=28, seed=seed) for seed in range(4)] + [Row(top_p=0.59, seed=seed) for seed in range(4)]
    logits_BV = torch.cat(((torch.randn(2, 50) * 0.7).round(), torch.zeros(2, 50))).repeat(2, 1)
    logits_BV[3, 45] = 0.5
    assert choose_among(2, logits_BV, rows, 32) == choose(logits_BV, rows)


def test_the_edge_is_where_it_is_among_the_tokens_of_all_ranks() -> None:
    found = choose_among(2, torch.zeros(8, 50), [Row(top_k=28, seed=seed) for seed in range(8)], 32)
    assert 25 <= max(found) < 28  # beyond the first rank's tokens, and no further


def test_a_chunk_may_be_empty_and_a_rank_without_any_mass() -> None:
    """129 tokens are 64 and 65, so in chunks of 64 the first rank has none in its second one."""
    rows = [Row(seed=1), Row(temperature=0.0), Row(top_k=2, seed=2), Row(top_p=0.7, seed=3)]
    logits_BV = torch.full((4, 129), -torch.inf)
    logits_BV[:, 126:] = torch.tensor([0.1, 0.3, 0.2])
    found = choose_among(2, logits_BV, rows)
    assert found == choose(logits_BV, rows)
    assert found[1] == 127
    assert min(found) >= 126


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_token_on_any_rank(bad: float) -> None:
    torch.manual_seed(0)
    rows = [Row(top_k=5), Row(top_p=0.5), Row(temperature=0.0)]
    logits_BV = torch.randn(3, 100)
    logits_BV[1] = -torch.inf
    logits_BV[1, 70] = bad
    found = choose_among(2, logits_BV, rows)
    assert found == choose(logits_BV, rows)
    assert found[1] == -1


def test_what_crosses_does_not_grow_with_what_a_chunk_holds() -> None:
    """Five numbers of a chunk and a token; two histograms eight times where rows are cut off."""
    size, chunk = 512, 128

    def sent(ranks: ThreadRanks, rows: list[Row]) -> int:
        logits_BV = torch.randn(len(rows), size // 2, generator=torch.Generator().manual_seed(ranks.rank))
        choose(logits_BV, rows, chunk, Vocabulary(size, ranks))
        return ranks.num_numbers

    of_row = 5 * (size // 2 // chunk) + 1
    assert together(2, lambda ranks: sent(ranks, [Row(), Row(temperature=0.0)])) == [2 * of_row] * 2
    assert together(2, lambda ranks: sent(ranks, [Row(top_k=3)])) == [of_row + 8 * 2 * 256] * 2
