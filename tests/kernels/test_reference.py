"""The reference operations against their formulas, written out again in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Backend


def test_the_reference_module_is_a_backend() -> None:
    backend: Backend = reference
    assert backend is reference


def test_rms_norm_of_zeros_is_zero() -> None:
    assert reference.rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-6).eq(0).all()


def test_rope_turns_each_pair_by_its_position_times_its_frequency() -> None:
    torch.manual_seed(0)
    x_THK, positions_T = torch.randn(6, 3, 8), torch.tensor([0, 1, 2, 77, 1000, 8191])
    frequencies = torch.tensor([10000.0 ** (-2 * pair / 8) for pair in range(4)], dtype=torch.float64)
    turns = torch.polar(torch.ones(6, 4, dtype=torch.float64), positions_T.double()[:, None] * frequencies)
    turned = torch.complex(x_THK[..., :4].double(), x_THK[..., 4:].double()) * turns[:, None]
    actual = reference.rope(x_THK, reference.rope_table(8192, 8, 10000.0), positions_T)
    # At position 8191 a float32 angle itself is only known to about 5e-4.
    assert_close(actual.double(), torch.cat((turned.real, turned.imag), dim=-1), rtol=0, atol=2e-3)
    assert_close(actual[0], x_THK[0])


def test_rope_of_bfloat16_is_rounded_once_at_the_end() -> None:
    """With angles in bfloat16, position 8191 would be 8192, one radian further."""
    table, positions_T = reference.rope_table(8192, 4, 10000.0), torch.tensor([77, 4000, 8191])
    x_THK = torch.randn(3, 1, 4, dtype=torch.bfloat16)
    turned = reference.rope(x_THK, table, positions_T)
    assert turned.equal(reference.rope(x_THK.float(), table, positions_T).bfloat16())


def test_products_of_turned_vectors_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query_K, key_K = torch.randn(2, 16)
    table = reference.rope_table(200, 16, 10000.0)

    def product(query_position: int, key_position: int) -> float:
        positions_T = torch.tensor([query_position, key_position])
        query, key = reference.rope(torch.stack((query_K, key_K))[:, None], table, positions_T)
        return float((query * key).sum())

    assert math.isclose(product(10, 3), product(110, 103), abs_tol=1e-4)
    assert not math.isclose(product(10, 3), product(10, 4), abs_tol=1e-2)


def test_softcap_follows_the_formula_and_stays_finite() -> None:
    x = torch.tensor([-1e6, -100.0, -1.0, 0.0, 0.5, 49.0, 1e6])
    assert_close(reference.softcap(x, 50.0).double(), 50 * torch.tanh(x.double() / 50), rtol=1e-6, atol=1e-6)


def test_no_cap_leaves_the_values_alone() -> None:
    x = torch.tensor([1e6, -3.0])
    assert reference.softcap(x, None) is x


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("gelu_pytorch_tanh", lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("gelu", lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("relu", lambda x: max(x, 0.0)),
    ],
)
def test_geglu_follows_the_formula(activation: str, expected: Callable[[float], float]) -> None:
    gates, up = [-3.0, -0.7, 0.0, 0.4, 2.5], 1.5
    actual = reference.geglu(torch.tensor([gates]), torch.full((1, 5), up), activation)
    assert_close(actual, torch.tensor([[expected(gate) * up for gate in gates]]), rtol=1e-5, atol=1e-6)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="'mish'"):
        reference.geglu(torch.ones(1, 1), torch.ones(1, 1), "mish")


def test_write_kv_fills_the_named_slots_and_no_other() -> None:
    keys_NSGK, values_NSGK = torch.zeros(3, 4, 2, 5), torch.zeros(3, 4, 2, 5)
    keys_TGK, values_TGK = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    reference.write_kv(keys_TGK, values_TGK, keys_NSGK, values_NSGK, torch.tensor([9, 3]))
    assert_close(keys_NSGK[2, 1], keys_TGK[0])
    assert_close(values_NSGK[0, 3], values_TGK[1])
    assert keys_NSGK.any(-1).any(-1).sum() == values_NSGK.any(-1).any(-1).sum() == 2
