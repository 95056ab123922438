"""Maxima by blocks are maxima."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.blockwise import blocks, first_largest, k_largest


@given(width=st.integers(1, 700), num_levels=st.sampled_from([1, 2, 50, 10_000]), seed=st.integers(0, 1000))
def test_the_first_of_the_largest_is_found(width: int, num_levels: int, seed: int) -> None:
    x_RV = torch.randint(-num_levels, 1, (3, width), generator=torch.Generator().manual_seed(seed)).float()
    found = first_largest(x_RV)
    for row, value, index in zip(x_RV.tolist(), found.values.tolist(), found.indices.tolist(), strict=True):
        assert (value, index) == (max(row), row.index(max(row)))


@given(width=st.integers(1, 700), k=st.integers(0, 30), num_levels=st.sampled_from([1, 50]), seed=st.integers(0, 1000))
def test_the_k_largest_are_found_each_once(width: int, k: int, num_levels: int, seed: int) -> None:
    k = min(k, width)
    x_RV = torch.randint(-num_levels, 1, (3, width), generator=torch.Generator().manual_seed(seed)).float()
    found = k_largest(x_RV, k)
    assert torch.equal(found.values, x_RV.sort(dim=-1, descending=True).values[:, :k])
    assert torch.equal(x_RV.gather(-1, found.indices), found.values)
    assert all(len(set(indices)) == k for indices in found.indices.tolist())


@pytest.mark.parametrize("place", [0, 130, 299])
def test_a_number_that_is_none_is_the_largest(place: int) -> None:
    x_RV = torch.zeros((2, 300))
    x_RV[1, place] = math.nan
    assert first_largest(x_RV).values.isnan().tolist() == [False, True]


def test_rows_of_whole_blocks_are_not_copied() -> None:
    x_RV = torch.zeros((2, 32_000))
    assert blocks(x_RV, 0.0).data_ptr() == x_RV.data_ptr()
    assert blocks(x_RV[:, :300].contiguous(), 7.0)[0, 2, 43:].tolist() == [0.0] + [7.0] * 84
