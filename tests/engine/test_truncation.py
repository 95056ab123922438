"""Truncation of long rows against sorting them: what stays, to the token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemline.engine.truncation import keep_from_, truncate_


def kept(weights_V: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    truncated_V = weights_V.clone()
    truncate_(truncated_V, top_k, top_p)
    stayed = truncated_V > 0
    assert torch.equal(truncated_V[stayed], weights_V[stayed])
    left: list[int] = stayed.nonzero().squeeze(-1).tolist()
    return left


def expected(weights_V: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    """By sorting everything, likelier first and of equal ones the lower id."""
    order = torch.sort(weights_V, descending=True, stable=True).indices[: top_k or None]
    mass = weights_V[order].double()
    before = mass.cumsum(0) - mass
    return sorted(order[(before < top_p * mass.sum()) | (top_p >= 1)].tolist())


# Multiples of 1/64, so that every sum is exact and ties are many.
@settings(max_examples=60)
@given(
    vocab_size=st.sampled_from([1, 7, 4096, 4097, 5003, 33000]),
    num_levels=st.sampled_from([1, 3, 64]),
    peaked=st.booleans(),
    top_k=st.one_of(st.just(0), st.integers(1, 200), st.integers(1, 40_000)),
    top_p=st.sampled_from([1.0, 0.01, 0.25, 0.5, 0.9, 0.99]),
    seed=st.integers(0, 1000),
)
def test_what_stays_is_what_sorting_gives(
    vocab_size: int, num_levels: int, peaked: bool, top_k: int, top_p: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights_V = torch.randint(1, num_levels + 1, (vocab_size,), generator=generator) / 64
    if peaked:
        weights_V *= torch.rand(vocab_size, generator=generator) < 0.01
        weights_V[seed % vocab_size] = 1.0
    left = [token_id for token_id in expected(weights_V, top_k, top_p) if weights_V[token_id] > 0]
    assert kept(weights_V, top_k, top_p) == left


@pytest.mark.parametrize("top_k", [1, 5, 2000])
def test_of_equal_tokens_the_lowest_ids_stay_wherever_they_stand(top_k: int) -> None:
    weights_V = torch.full((9001,), 0.5)
    assert kept(weights_V, top_k, 1.0) == list(range(top_k))
    weights_V[8999:] = 1.0  # beyond the last whole column
    assert kept(weights_V, top_k + 2, 1.0) == [*range(top_k), 8999, 9000]


def test_weights_equal_to_the_least_stay_and_lower_ones_do_not() -> None:
    weights_V = torch.tensor([1.0, 0.3, 0.29999998, 0.30000001])
    least = float(weights_V[1])
    keep_from_(weights_V, least)
    assert (weights_V > 0).tolist() == [True, True, False, True]


def test_a_flat_row_is_looked_at_beyond_its_likeliest_columns() -> None:
    weights_V = torch.full((6400,), 0.25)
    weights_V[::2] = 0.5
    assert len(kept(weights_V, 0, 0.5)) == 2400
