"""Inverting a cumulative function."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.inversion import invert

SHARES = st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.sampled_from([0.0, 0.5, 1.0 - 2.0**-53]))


@given(
    vocab_size=st.integers(1, 1500),
    density=st.sampled_from([0.002, 0.3, 1.0]),
    shares=st.lists(SHARES, min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_share_falls_into_the_chosen_token(vocab_size: int, density: float, shares: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights_RV = torch.rand((len(shares), vocab_size), generator=generator).pow(8)
    weights_RV *= torch.rand((len(shares), vocab_size), generator=generator) <= density
    weights_RV[:, seed % vocab_size] += 0.5
    chosen = invert(weights_RV, torch.tensor(shares, dtype=torch.float64).unsqueeze(-1)).tolist()
    mass_RV = weights_RV.double().cumsum(-1)
    for row, (token_id, share) in enumerate(zip(chosen, shares, strict=True)):
        target = share * float(mass_RV[row, -1])
        edge = 1e-6 * float(mass_RV[row, -1])  # blocks are summed in float32
        assert weights_RV[row, token_id] > 0
        assert float(mass_RV[row, token_id]) >= target - edge
        assert token_id == 0 or float(mass_RV[row, token_id - 1]) <= target + edge


def test_a_token_of_no_weight_is_never_chosen_at_the_edges() -> None:
    weights_RV = torch.zeros((2, 3000))
    weights_RV[:, 1234] = 1e-30
    shares_R1 = torch.tensor([[0.0], [1.0 - 2.0**-53]], dtype=torch.float64)
    assert invert(weights_RV, shares_R1).tolist() == [1234, 1234]
