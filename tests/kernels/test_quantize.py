"""The quantised formats, as their specification in plain torch makes them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.backends import backend_or_skip
from torch.testing import assert_close

from gemline_kernels.quantize import (
    GROUP,
    Fp8Rows,
    Int4Groups,
    Int8Rows,
    quantize_activations,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
)

Quantize = Callable[[torch.Tensor], Int8Rows | Int4Groups | Fp8Rows]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 300))
SPREADS = st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30])


def weight(shape: tuple[int, int], spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


@given(SHAPES, SPREADS)
def test_int8_is_off_by_half_a_step_at_most(shape: tuple[int, int], spread: float) -> None:
    weight_NK = weight(shape, spread)
    rows = quantize_int8(weight_NK)
    off_NK = (rows.dequantized().double() - weight_NK.double()).abs()
    assert bool((off_NK <= rows.scale_N.double()[:, None] * 0.50001).all())
    assert_close(rows.scale_N, weight_NK.abs().amax(1) / 127)


@given(SHAPES, SPREADS)
def test_fp8_is_off_by_half_a_step_of_three_bits_at_most(shape: tuple[int, int], spread: float) -> None:
    weight_NK = weight(shape, spread)
    rows = quantize_fp8(weight_NK)
    off_NK = (rows.dequantized().double() - weight_NK.double()).abs()
    step_NK = torch.maximum(weight_NK.double().abs() / 16, rows.scale_N.double()[:, None] * 2**-10)
    assert bool((off_NK <= step_NK * 1.00001).all())
    assert_close(rows.scale_N, weight_NK.abs().amax(1) / 448)


def test_fp8_keeps_all_that_it_can_say() -> None:
    """Of a row whose largest is 448 times a power of two, from the subnormals on."""
    values = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    weight_NK = torch.tensor([2.0**-90, 1.0, 2.0**90])[:, None] * values[values.isfinite()]
    rows = quantize_fp8(weight_NK)
    assert rows.dequantized().equal(weight_NK)
    assert rows.values_NK.dtype == torch.float8_e4m3fn
    assert rows.num_bytes == 3 * 254 + 3 * 4


def test_an_fp8_row_of_the_least_or_the_largest_numbers_stays_finite() -> None:
    finfo = torch.finfo(torch.float32)
    rows = quantize_fp8(torch.tensor([[finfo.smallest_normal, -1e-40], [finfo.max, -finfo.max], [3e-36, -6e-36]]))
    assert_close(rows.dequantized()[1], torch.tensor([finfo.max, -finfo.max]), rtol=1e-6, atol=0)
    assert rows.dequantized()[0].eq(0).all()  # a scale would be no normal number
    assert_close(rows.dequantized()[2], torch.tensor([3e-36, -6e-36]), rtol=1 / 16, atol=0)


@given(SHAPES, SPREADS)
def test_an_int4_group_is_never_worse_than_with_its_furthest_value_at_minus_eight(
    shape: tuple[int, int], spread: float
) -> None:
    weight_NK = weight(shape, spread)
    groups = quantize_int4(weight_NK)
    for start in range(0, shape[1], GROUP):
        part_NK = weight_NK[:, start : start + GROUP]
        furthest_N1 = part_NK.gather(1, part_NK.abs().argmax(1, keepdim=True))
        scale_N1 = (furthest_N1 / -8).bfloat16().double()
        plain_NK = (part_NK.double() / scale_N1).round().clamp(-8, 7) * scale_N1
        plain = (plain_NK - part_NK).square().sum(1)
        actual = (groups.dequantized()[:, start : start + GROUP].double() - part_NK).square().sum(1)
        assert bool((actual <= plain * 1.00001).all())


def test_int4_of_gaussian_weights_is_off_by_less_than_ten_percent() -> None:
    weight_NK = weight((64, 1024), 1.0)
    off = (quantize_int4(weight_NK).dequantized() - weight_NK).norm() / weight_NK.norm()
    assert 0.05 < off < 0.1


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4, quantize_fp8])
def test_zeros_stay_zeros(quantize: Quantize) -> None:
    weight_NK = torch.zeros(3, 200)
    weight_NK[1, 150] = 2.0
    assert_close(quantize(weight_NK).dequantized(), weight_NK, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4, quantize_fp8])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_with_the_shape(quantize: Quantize, wrong: float) -> None:
    weight_NK = torch.ones(3, 200)
    weight_NK[2, 199] = wrong
    with pytest.raises(ValueError, match=r"\(3, 200\) holds NaN or infinity"):
        quantize(weight_NK)


@pytest.mark.parametrize("name", ["onednn", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_fp8_value_is_multiplied_as_it_is_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    values = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    weight_NK = values[values.isfinite()][:, None].repeat(1, 2).to(dtype)
    weight_NK[:, 1] = 448.0  # each row's scale is 1
    linear = backend_or_skip(name).linear(weight_NK, None, "fp8")
    assert linear(torch.tensor([[1.0, 0.0]], dtype=dtype))[0].equal(weight_NK[:, 0])


@pytest.mark.parametrize("name", ["reference", "onednn", "native"])
def test_a_product_with_fp8_weights_is_off_by_a_sixteenth_of_each_term_at_most(name: str) -> None:
    """And by a 1024th of the row's scale for values that are subnormal. Against the weight as bfloat16 has it."""
    weight_NK, x_TK = weight((40, 300), 0.02).bfloat16(), weight((6, 300), 1.0, seed=1).bfloat16()
    product_TN = backend_or_skip(name).linear(weight_NK, None, "fp8")(x_TK).double()
    exact_TN = x_TK.double() @ weight_NK.double().T
    scale_N = weight_NK.double().abs().amax(1) / 448
    terms_TN = x_TK.double().abs() @ torch.maximum(weight_NK.double().abs() / 16, scale_N[:, None] * 2**-10).T
    assert bool(((product_TN - exact_TN).abs() <= terms_TN + 2**-8 * exact_TN.abs()).all())
    assert 0.01 < (product_TN - exact_TN).norm() / exact_TN.norm() < 0.04


def test_bfloat16_weights_are_quantised_as_the_float32_values_they_are() -> None:
    weight_NK = weight((4, 130), 1.0).bfloat16()
    for plain, wide in (
        (quantize_int8(weight_NK), quantize_int8(weight_NK.float())),
        (quantize_int4(weight_NK), quantize_int4(weight_NK.float())),
        (quantize_fp8(weight_NK), quantize_fp8(weight_NK.float())),
    ):
        assert_close(plain.dequantized(), wide.dequantized(), rtol=0, atol=0)


def test_a_scale_belongs_to_its_row_and_group() -> None:
    weight_NK = torch.ones(2, GROUP + 1)
    weight_NK[0, GROUP] = 100.0
    weight_NK[1] = -3.0
    groups = quantize_int4(weight_NK)
    assert isinstance(groups, Int4Groups)
    assert groups.scale_NJ.shape == (2, 2)
    assert_close(groups.dequantized(), weight_NK, rtol=4e-3, atol=0)
    assert groups.num_bytes == 2 * (GROUP + 1) + 2 * 2 * 2


def test_rows_of_int8_are_those_of_the_whole() -> None:
    rows = quantize_int8(weight((6, 40), 1.0))
    assert_close(rows.rows(torch.tensor([5, 0, 5])), rows.dequantized()[[5, 0, 5]], rtol=0, atol=0)
    assert rows.num_bytes == 6 * 40 + 6 * 4


@pytest.mark.parametrize("levels", [127, 63])
def test_activations_use_all_levels_of_their_own_row(levels: int) -> None:
    x_TK = torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, -1e-3]])
    rows = quantize_activations(x_TK, levels)
    assert rows.values_NK.abs().amax(1).tolist() == [levels, 0, levels]
    assert_close(rows.dequantized(), x_TK, rtol=0, atol=2.0 / levels / 2)


def test_a_row_of_activations_that_is_not_finite_says_so_in_its_scale() -> None:
    x_TK = torch.ones(3, 5)
    x_TK[0, 1], x_TK[2, 4] = float("nan"), float("inf")
    assert quantize_activations(x_TK).scale_N.isfinite().tolist() == [False, True, False]
