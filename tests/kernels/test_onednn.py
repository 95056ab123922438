"""The portable weights against the reference, on this CPU and as oneDNN sees one without VNNI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from gemline_kernels import onednn, quantize, reference
from gemline_kernels.backend import Quantization
from gemline_kernels.reference_linear import stacked

ALL: list[Quantization] = ["none", "int8", "int4", "fp8"]
DTYPES = [torch.float32, torch.bfloat16]
NUM_ROWS = (0, 1, 4, 5, 33)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def allowed(x_TK: torch.Tensor, weight_NK: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """|error| against the reference: half a step of an activation, int8's step of an int4 weight, rounding."""
    x_TK, levels = x_TK.double(), onednn._activation_levels() or 127
    magnitudes_TN = x_TK.abs() @ weight_NK.double().abs().T
    rounding_TN = magnitudes_TN * (2.0**-7 if weight_NK.dtype == torch.bfloat16 else 1e-5)
    if quantization in ("none", "fp8"):  # activations are as they come, and weights those of the reference
        return rounding_TN
    rows = quantize.quantize_int8(weight_NK.float())
    off_x_TN = x_TK.abs().amax(1, keepdim=True) / levels * 0.501 * rows.dequantized().double().abs().sum(1) * 1.1
    off_weight_TN = x_TK.abs().sum(1, keepdim=True) * rows.scale_N.double() * 0.6
    return rounding_TN + off_x_TN + (off_weight_TN if quantization == "int4" else 0)


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (45, 300), (600, 1030)])
def test_products_stay_near_the_reference(
    shape: tuple[int, int], dtype: torch.dtype, quantization: Quantization
) -> None:
    weight_NK, bias_N = random(*shape, dtype=dtype), random(shape[0], dtype=dtype, seed=1)
    multiply, expected = (backend.linear(weight_NK, bias_N, quantization) for backend in (onednn, reference))
    for num_rows in NUM_ROWS:
        x_TK = random(num_rows, shape[1], dtype=dtype, seed=2)
        y_TN, bound_TN = multiply(x_TK), allowed(x_TK, weight_NK, quantization)
        assert y_TN.dtype == dtype
        assert bool(((y_TN.double() - expected(x_TK).double()).abs() <= bound_TN + 0.02).all()), f"{num_rows} rows"


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_pair_is_its_two_products_and_the_activation(dtype: torch.dtype, quantization: Quantization) -> None:
    gate_FD, up_FD, x_TD = (random(*shape, dtype=dtype, seed=shape[0]) for shape in ((44, 300), (44, 300), (7, 300)))
    y_TF = onednn.gated(gate_FD, up_FD, "silu", quantization)(x_TD)
    gate_TF, up_TF = (onednn.linear(weight, None, quantization)(x_TD).float() for weight in (gate_FD, up_FD))
    assert_close(y_TF.float(), reference.geglu(gate_TF, up_TF, "silu"), rtol=3e-2, atol=0.5)
    with pytest.raises(ValueError, match="unknown activation"):
        onednn.gated(gate_FD, up_FD, "tanh", quantization)


def test_halves_of_one_matrix_are_stacked_without_a_copy_and_others_with_one() -> None:
    whole_ND, other_ND = random(6, 4), random(3, 4, seed=1)
    upper_ND, lower_ND = whole_ND[:2], whole_ND[2:]
    assert stacked(upper_ND, lower_ND).data_ptr() == whole_ND.data_ptr()
    assert torch.equal(stacked(upper_ND, lower_ND), whole_ND)
    for first_ND, second_ND in (
        (lower_ND, upper_ND),
        (upper_ND, whole_ND[3:]),
        (upper_ND, other_ND),
        (upper_ND[:, :2], lower_ND[:, :2]),
        (whole_ND.T[:2], whole_ND.T[2:]),
    ):
        assert torch.equal(stacked(first_ND, second_ND), torch.cat((first_ND, second_ND)))


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_gives_rows_and_capped_logits(dtype: torch.dtype, quantization: Quantization) -> None:
    weight_VD, x_BD, token_ids_T = random(77, 130, dtype=dtype), random(3, 130, dtype=dtype), torch.tensor([76, 0, 5])
    embedding, expected = (backend.embedding(weight_VD, quantization) for backend in (onednn, reference))
    assert torch.equal(embedding.rows(token_ids_T, 3.7), expected.rows(token_ids_T, 3.7))
    logits_BV = embedding.logits(x_BD, 30.0)
    assert logits_BV.dtype == torch.float32
    assert_close(logits_BV, expected.logits(x_BD, 30.0), rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_a_weight_that_is_not_finite_is_refused(quantization: Quantization) -> None:
    weight_NK = random(4, 8)
    weight_NK[3, 7] = float("nan")
    for make in (onednn.embedding, lambda weight, how: onednn.linear(weight, None, how)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            make(weight_NK, quantization)


def test_a_wrong_activation_spoils_its_own_row_only() -> None:
    x_TK = random(3, 40)
    x_TK[1, 5] = float("nan")
    y_TN = onednn.linear(random(6, 40, seed=1), None, "int8")(x_TK)
    assert y_TN.isfinite().all(dim=1).tolist() == [True, False, True]


def test_many_rows_of_emulated_bfloat16_are_as_accurate_as_few() -> None:
    """Beyond a few rows blocks of the weight are made float32; here the blocks do not divide it."""
    weight_NK, x_TK = random(2000, 1030, dtype=torch.bfloat16), random(9, 1030, dtype=torch.bfloat16, seed=1)
    y_TN = onednn.linear(weight_NK, None, "none")(x_TK)
    exact_TN = x_TK.double() @ weight_NK.double().T
    assert_close(y_TN.double(), exact_TN, rtol=2.0**-8, atol=0.05)


def test_memory_is_counted_once_for_what_is_held_once() -> None:
    weight_NK = random(64, 128, dtype=torch.bfloat16)
    assert onednn.linear(weight_NK, None, "none").num_bytes == weight_NK.nbytes
    assert onednn.embedding(weight_NK, "none").num_bytes == weight_NK.nbytes
    assert onednn.linear(weight_NK, None, "int8").num_bytes >= weight_NK.numel()
    assert onednn.linear(weight_NK, None, "fp8").num_bytes == weight_NK.numel() + 4 * 64


SATURATED = """
import torch
from gemline_kernels import onednn
weight = torch.ones(32, 512)
x = torch.stack((torch.ones(512), -torch.ones(512)))
y = onednn.linear(weight, None, "int8")(x)
assert torch.allclose(y, torch.tensor([[512.0], [-512.0]]).expand(2, 32), rtol=1e-4), y
print(onednn._activation_levels())
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "ALL"])
def test_products_do_not_saturate_whatever_instructions_onednn_may_use(isa: str, tmp_path: Path) -> None:
    """Without VNNI oneDNN adds pairs of products in 16 bits."""
    environment = dict(os.environ, ONEDNN_MAX_CPU_ISA=isa)
    ran = subprocess.run([sys.executable, "-c", SATURATED], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() in ("127", "63", "None")
