"""Products with weights of the published models' sizes, plain and quantised, against dequantised ones in float64."""

import math
from typing import get_args

import pytest
import torch
from interpreted.test_linear import check, exact_weight
from support.device import DEVICE
from support.published import MODELS, Model
from torch.nn.functional import gelu
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import linear

NUM_ROWS = (1, 8, 64, 65)

of_models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
of_quantizations = pytest.mark.parametrize("quantization", get_args(Quantization))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).bfloat16()


@of_models
@of_quantizations
def test_projections_agree(model: Model, quantization: Quantization) -> None:
    heads = model.num_heads * model.head_dim
    for num_outputs, num_inputs in ((model.num_parts * model.head_dim, model.width), (model.width, heads)):
        check_linear(num_outputs, num_inputs, quantization)


@of_models
@of_quantizations
def test_the_mlps_second_half_agrees(model: Model, quantization: Quantization) -> None:
    check_linear(model.width, model.inner, quantization)


def check_linear(num_outputs: int, num_inputs: int, quantization: Quantization) -> None:
    torch.manual_seed(0)
    weight, bias, x_TD = random(num_outputs, num_inputs), random(num_outputs), random(NUM_ROWS[-1], num_inputs)
    packed, weights = linear.linear(weight, bias, quantization), exact_weight(weight, quantization)
    exact = x_TD.double() @ weights.T + bias.double()
    magnitude = x_TD.double().abs() @ weights.abs().T + bias.double().abs()
    for num_rows in NUM_ROWS:
        check(packed(x_TD[:num_rows]), exact[:num_rows], magnitude[:num_rows], torch.bfloat16)


@of_models
@of_quantizations
def test_the_mlps_first_half_agrees(model: Model, quantization: Quantization) -> None:
    """Of the published MLP a quarter: what a product is split into does not depend on the rest."""
    torch.manual_seed(0)
    gate, up = random(model.inner // 4, model.width), random(model.inner // 4, model.width)
    x_TD = random(NUM_ROWS[-1], model.width) / math.sqrt(model.width)
    packed = linear.gated(gate, up, "gelu_pytorch_tanh", quantization)
    gated, lifted = (x_TD.double() @ exact_weight(part, quantization).T for part in (gate, up))
    exact = gelu(gated, approximate="tanh") * lifted
    for num_rows in NUM_ROWS:
        # Plain products are rounded to bfloat16 before they are multiplied.
        assert_close(packed(x_TD[:num_rows]).double(), exact[:num_rows], rtol=2**-6, atol=2**-6)


@of_models
@of_quantizations
def test_the_head_agrees(model: Model, quantization: Quantization) -> None:
    torch.manual_seed(0)
    weight, x_BD = random(model.vocab_size // 4, model.width), random(64, model.width) / math.sqrt(model.width) * 9
    actual, expected = linear.embedding(weight, quantization), reference.embedding(weight, quantization)
    for num_rows in (1, 64):
        exact = expected.logits(x_BD[:num_rows].float(), 30.0)
        assert_close(actual.logits(x_BD[:num_rows], 30.0), exact, rtol=2**-7, atol=2**-7)
    ids = torch.tensor([0, len(weight) - 1, 7], device=DEVICE)
    assert actual.rows(ids, 48.0).equal(expected.rows(ids, 48.0))


@pytest.mark.parametrize("quantization", [name for name in get_args(Quantization) if name != "none"])
def test_a_few_rows_give_the_same_bits_whatever_is_beside(quantization: Quantization) -> None:
    torch.manual_seed(0)
    model = MODELS[0]
    packed, x_TD = linear.linear(random(model.width, model.inner), None, quantization), random(16, model.inner)
    assert packed(x_TD)[:1].equal(packed(x_TD[:1]))
