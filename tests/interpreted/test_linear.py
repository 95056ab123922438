"""Triton's products of a few rows with quantised weights against dequantised ones in float64."""

import pytest
import torch
from support.device import DEVICE
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import linear
from gemline_kernels.quantize import Int4Groups, quantize_fp8, quantize_int4, quantize_int8

SHAPES = [(64, 128), (33, 200), (70, 1100), (1, 5)]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE)


def exact_weight(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    match quantization:
        case "int8":
            return quantize_int8(weight).dequantized().double()
        case "int4":
            return quantize_int4(weight).dequantized().double()
        case "fp8":
            return quantize_fp8(weight).dequantized().double()
    return weight.double()


def check(actual: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor, dtype: torch.dtype) -> None:
    """Rounding of each product counts towards the sum of their sizes, that of the result towards itself."""
    assert actual.dtype == dtype
    products = 2e-6 if dtype == torch.float32 else 2**-8
    excess = (actual.double() - exact).abs() - magnitude * products - exact.abs() * 2**-8 * (dtype != torch.float32)
    assert float(excess.max()) <= 1e-5


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8", "none"])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_linear_agrees(quantization: Quantization, num_rows: int, dtype: torch.dtype) -> None:
    for num_outputs, num_inputs in SHAPES:
        torch.manual_seed(0)
        weight, bias = random(num_outputs, num_inputs).to(dtype), random(num_outputs).to(dtype)
        x = random(num_rows, num_inputs).to(dtype)
        weights = exact_weight(weight, quantization)
        exact = x.double() @ weights.T + bias.double()
        magnitude = x.double().abs() @ weights.abs().T + bias.double().abs()
        check(linear.linear(weight, bias, quantization)(x), exact, magnitude, dtype)


@pytest.mark.parametrize("num_rows", [1, 65])
def test_groups_that_were_quantised_before_are_multiplied_as_they_are(num_rows: int) -> None:
    torch.manual_seed(0)
    gate, up = (Int4Groups(torch.randint(-8, 8, (40, 130), dtype=torch.int8), random(40, 2).bfloat16()) for _ in "gu")
    bias, x = random(40), random(num_rows, 130)
    for ours, specified in (
        (linear.linear_int4(gate, bias), reference.linear_int4(gate, bias)),
        (linear.gated_int4(gate, up, "silu"), reference.gated_int4(gate, up, "silu")),
    ):
        assert_close(ours(x), specified(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8", "none"])
@pytest.mark.parametrize("num_rows", [1, 20, 65])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "silu"])
def test_gated_agrees(quantization: Quantization, num_rows: int, activation: str) -> None:
    torch.manual_seed(0)
    gate, up, x = random(40, 130), random(40, 130), random(num_rows, 130)
    expected = reference.gated(gate, up, activation, quantization)(x)
    assert_close(linear.gated(gate, up, activation, quantization)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8", "none"])
@pytest.mark.parametrize("num_rows", [2, 65])
def test_an_embedding_agrees_by_rows_and_as_a_head(quantization: Quantization, num_rows: int) -> None:
    torch.manual_seed(0)
    weight, x, ids = random(50, 70), random(num_rows, 70) * 3, torch.tensor([0, 49, 7], device=DEVICE)
    actual, expected = linear.embedding(weight, quantization), reference.embedding(weight, quantization)
    assert actual.rows(ids, 3.5).equal(expected.rows(ids, 3.5))
    for cap in (None, 30.0):
        assert_close(actual.logits(x, cap), expected.logits(x, cap), rtol=1e-5, atol=1e-4)


def test_a_few_rows_give_the_same_bits_whatever_is_beside() -> None:
    torch.manual_seed(0)
    weight, x = random(40, 300), random(16, 300)
    for quantization in ("int8", "int4", "fp8"):
        packed = linear.linear(weight, None, quantization)
        assert packed(x)[:1].equal(packed(x[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_fp8_value_arrives_as_it_is(dtype: torch.dtype) -> None:
    """Subnormals and the largest too, in rows of any scale: rows of the unit matrix pick single weights."""
    values = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    scale = torch.tensor([2.0**-90, 1.0, 2.0**90, 0.0])
    weight = (scale[:, None] * values[values.isfinite()]).to(DEVICE)
    product = linear.linear(weight, None, "fp8")
    x = torch.eye(254, dtype=dtype, device=DEVICE)
    picked = [product(x[start : start + 64]).float() for start in range(0, 254, 64)]
    assert torch.cat(picked).equal(weight.T)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_a_weight_that_is_not_finite_is_refused(quantization: Quantization) -> None:
    weight = torch.ones(4, 4, device=DEVICE)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"\(4, 4\) holds NaN"):
        linear.linear(weight, None, quantization)
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        linear.gated(weight, weight, "swish", quantization)
