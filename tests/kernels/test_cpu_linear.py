"""The native linears against float64: what they add to the inputs' own rounding is float32's and nothing else."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from gemline_kernels import quantize, reference
from gemline_kernels.backend import Quantization
from gemline_kernels.cpu import linear as native
from gemline_kernels.cpu.build import NativeUnavailableError
from gemline_kernels.cpu.native import library
from gemline_kernels.cpu.packed import Packed

try:
    library()
except NativeUnavailableError as reason:
    pytest.skip(f"no native library: {reason}", allow_module_level=True)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}
ALL: list[Quantization] = ["none", "int8", "int4"]
NUM_ROWS = [*range(1, 14), 31, 32, 33, 144, 200]
SHAPES = [(1, 1), (5, 7), (33, 129), (64, 1024), (100, 2306), (257, 300)]  # outputs, inputs
HALF_ULP = 2.0**-24


@pytest.fixture(autouse=True)
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def stored(weight_NK: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """The weight as the format holds it, float64."""
    match quantization:
        case "int8":
            return quantize.quantize_int8(weight_NK).dequantized().double()
        case "int4":
            return quantize.quantize_int4(weight_NK).dequantized().double()
    return weight_NK.double()


def used(x_TK: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """The activations as the product uses them, float64."""
    return x_TK.double() if quantization == "none" else quantize.quantize_activations(x_TK).dequantized().double()


def bound(x_TK: torch.Tensor, weight_NK: torch.Tensor, num_roundings: int) -> torch.Tensor:
    """|error| of that many float32 roundings, each of at most the sum of all magnitudes."""
    return (x_TK.abs() @ weight_NK.abs().T) * HALF_ULP * (num_roundings + 4)


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_exact_up_to_the_rounding_of_a_float32_sum(
    shape: tuple[int, int], quantization: Quantization
) -> None:
    weight_NK = random(*shape, seed=1)
    packed = Packed(weight_NK, quantization)
    exact_NK = stored(weight_NK, quantization)
    # int8 sums are exact, those of int4 within a group.
    num_roundings = {"none": shape[1], "int8": 0, "int4": shape[1] // quantize.GROUP + 1}[quantization]
    for num_rows in NUM_ROWS:
        x_TK = random(num_rows, shape[1], seed=2)
        x_exact = used(x_TK, quantization)
        off_TN = (packed.multiply(x_TK, torch.float32).double() - x_exact @ exact_NK.T).abs()
        assert bool((off_TN <= bound(x_exact, exact_NK, num_roundings)).all()), f"{num_rows} rows"


@pytest.mark.parametrize("quantization", ALL)
def test_results_are_rounded_once_to_the_dtype_of_x(quantization: Quantization) -> None:
    weight_NK, x_TK = random(70, 130, seed=1), random(5, 130)
    multiply = native.linear(weight_NK, None, quantization)
    wide_TN = Packed(weight_NK, quantization).multiply(x_TK, torch.float32)
    assert_close(multiply(x_TK), wide_TN.bfloat16(), rtol=0, atol=0)
    assert_close(Packed(weight_NK, quantization).multiply(x_TK.float(), torch.float32), wide_TN, rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_products_stay_near_the_reference_with_activations_as_they_are(quantization: Quantization) -> None:
    """A row's activations are off by half a step of max|x| / 127 each."""
    weight_NK, x_TK = random(70, 515, seed=1), random(9, 515).float()
    step_T1 = x_TK.abs().amax(1, keepdim=True).double() / 127
    allowed_TN = step_T1 * 0.501 * stored(weight_NK, quantization).abs().sum(1)
    off_TN = native.linear(weight_NK, None, quantization)(x_TK) - reference.linear(weight_NK, None, quantization)(x_TK)
    assert bool((off_TN.double().abs() <= allowed_TN + 1e-4).all())


@pytest.mark.parametrize("quantization", ALL)
def test_a_row_does_not_depend_on_the_rows_beside_it(quantization: Quantization) -> None:
    weight_NK, x_TK = random(100, 2306, seed=1), random(200, 2306)
    packed = Packed(weight_NK, quantization)
    alone_TN = torch.cat([packed.multiply(row_1K, torch.float32) for row_1K in x_TK[:, None]])
    for num_rows in NUM_ROWS:
        assert torch.equal(packed.multiply(x_TK[:num_rows], torch.float32), alone_TN[:num_rows])


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("num_rows", [1, 12, 200])
def test_a_result_does_not_depend_on_the_number_of_threads(quantization: Quantization, num_rows: int) -> None:
    weight_NK, x_TK = random(700, 1030, seed=1), random(num_rows, 1030)
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(Packed(weight_NK, quantization).multiply(x_TK, torch.float32))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("num_rows", [1, 3, 14])
def test_nothing_outside_weight_and_activations_is_read(quantization: Quantization, num_rows: int) -> None:
    """Both lie between NaNs, and at odd addresses."""
    weights, activations = torch.full((2, 20_001), float("nan"), dtype=torch.bfloat16)
    weight_NK, x_TK = weights[33 : 33 + 37 * 131].view(37, 131), activations[1 : 1 + num_rows * 131].view(num_rows, 131)
    weight_NK.copy_(random(37, 131, seed=1))
    x_TK.copy_(random(num_rows, 131))
    y_TN = native.linear(weight_NK, None, quantization)(x_TK)
    assert_close(
        y_TN, native.linear(random(37, 131, seed=1), None, quantization)(random(num_rows, 131)), rtol=0, atol=0
    )


@pytest.mark.parametrize("quantization", ALL)
def test_strided_tensors_are_taken_as_what_they_show(quantization: Quantization) -> None:
    weight_KN, x_KT = random(131, 37, seed=1), random(131, 5)
    y_TN = native.linear(weight_KN.T, None, quantization)(x_KT.T)
    assert_close(y_TN, native.linear(weight_KN.T.contiguous(), None, quantization)(x_KT.T.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ALL)
def test_zero_rows_give_zeros_and_no_rows_give_none(quantization: Quantization) -> None:
    weight_NK, x_TK = random(40, 200), random(3, 200)
    weight_NK[7], x_TK[1] = 0, 0
    y_TN = native.linear(weight_NK, None, quantization)(x_TK)
    assert bool(y_TN[1].eq(0).all())
    assert bool(y_TN[:, 7].eq(0).all())
    assert bool(y_TN.isfinite().all())
    assert native.linear(weight_NK, None, quantization)(x_TK[:0]).shape == (0, 40)


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("spread", [1e-35, 1e-6, 1e16])
def test_very_small_and_very_large_values_keep_their_relative_accuracy(
    quantization: Quantization, spread: float
) -> None:
    weight_NK, x_TK = (random(40, 256, seed=1) * spread), random(3, 256)
    y_TN = Packed(weight_NK, quantization).multiply(x_TK, torch.float32).double()
    exact_TN = used(x_TK, quantization) @ stored(weight_NK, quantization).T
    assert_close(y_TN / spread, exact_TN / spread, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("quantization", ALL)
def test_saturated_values_of_the_longest_sum_do_not_overflow(quantization: Quantization) -> None:
    weight_NK, x_TK = torch.ones(2, 65536, dtype=torch.bfloat16), torch.ones(2, 65536, dtype=torch.bfloat16)
    weight_NK[1], x_TK[1] = -1, -1
    y_TN = Packed(weight_NK, quantization).multiply(x_TK, torch.float32)
    assert_close(y_TN, torch.tensor([[65536.0, -65536.0], [-65536.0, 65536.0]]), rtol=1e-5, atol=0)


def test_longer_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="65537 inputs, at most 65536"):
        Packed(torch.zeros(1, 65537, dtype=torch.bfloat16), "int8")


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_wrong_activation_spoils_its_own_row_only(quantization: Quantization, wrong: float) -> None:
    weight_NK, x_TK = random(40, 200, seed=1), random(14, 200)
    right_TN = native.linear(weight_NK, None, quantization)(x_TK)
    x_TK[5, 77] = wrong
    y_TN = native.linear(weight_NK, None, quantization)(x_TK)
    assert not bool(y_TN[5].isfinite().any())
    others = [row for row in range(14) if row != 5]
    assert torch.equal(y_TN[others], right_TN[others])


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("place", [(0, 0), (36, 130), (5, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_weight_that_is_not_finite_is_refused(
    quantization: Quantization, place: tuple[int, int], dtype: torch.dtype
) -> None:
    good_NK, weight_NK = random(37, 131).to(dtype), random(37, 131).to(dtype)
    for wrong in (float("nan"), float("inf")):
        weight_NK[place] = wrong
        with pytest.raises(ValueError, match=r"\(37, 131\) holds NaN or infinity"):
            native.linear(weight_NK, None, quantization)
        with pytest.raises(ValueError, match="NaN or infinity"):
            native.gated(good_NK, weight_NK, "silu", quantization)
        with pytest.raises(ValueError, match="NaN or infinity"):
            native.embedding(weight_NK, quantization)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_weights_are_quantised_as_specified(dtype: torch.dtype) -> None:
    weight_NK = random(45, 300).to(dtype)
    rows = native.embedding(weight_NK.float(), "int8").rows(torch.arange(45), 1.0)
    assert_close(rows, quantize.quantize_int8(weight_NK).dequantized(), rtol=0, atol=0)


def test_int4_weights_are_quantised_as_specified_but_for_ties() -> None:
    """Unit vectors read the packed weight back. Two candidates for a scale may fit equally well."""
    weight_NK = random(45, 300).float()
    packed_NK = Packed(weight_NK, "int4").multiply(torch.eye(300), torch.float32).T
    specified_NK = quantize.quantize_int4(weight_NK).dequantized()
    assert (packed_NK - specified_NK).abs().gt(1e-6).float().mean() < 0.01
    assert (packed_NK - weight_NK).norm() <= (specified_NK - weight_NK).norm() * 1.0001


@pytest.mark.parametrize("shape", [(45, 300), (32, 128), (16, 96), (64, 1024)])
def test_groups_that_were_quantised_before_are_packed_as_they_are(shape: tuple[int, int]) -> None:
    weight = quantize.Int4Groups(
        torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8),
        random(shape[0], -(-shape[1] // quantize.GROUP)).bfloat16(),
    )
    read_back_NK = Packed(weight, "int4").multiply(torch.eye(shape[1]), torch.float32).T
    assert_close(read_back_NK, weight.dequantized(), rtol=1e-6, atol=0)


def test_groups_of_a_gated_pair_lie_where_packing_would_put_them() -> None:
    gate_FD, up_FD = random(45, 300).float(), random(45, 300, seed=1).float()
    gate, up = (quantize.quantize_int4(weight) for weight in (gate_FD, up_FD))
    x_TD = random(5, 300, seed=2)
    packed, ready = native.gated(gate_FD, up_FD, "silu", "int4"), native.gated_int4(gate, up, "silu")
    assert ready.num_bytes == packed.num_bytes
    assert_close(ready(x_TD), packed(x_TD), rtol=2e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"gate is \(45, 300\), but up is \(44, 300\)"):
        native.gated_int4(gate, quantize.quantize_int4(up_FD[:44]), "silu")


@pytest.mark.parametrize("quantization", ALL)
def test_bias_is_added_before_rounding(quantization: Quantization) -> None:
    weight_NK, x_TK, bias_N = random(45, 300), random(5, 300, seed=1), random(45, seed=2)
    y_TN = native.linear(weight_NK, bias_N, quantization)(x_TK)
    plain_TN = Packed(weight_NK, quantization).multiply(x_TK, torch.float32)
    assert_close(y_TN, (plain_TN + bias_N.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ALL)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_outputs", [16, 45])
def test_gate_and_up_meet_in_the_activation(activation: str, quantization: Quantization, num_outputs: int) -> None:
    gate_FD, up_FD, x_TD = random(num_outputs, 300), random(num_outputs, 300, seed=1), random(14, 300, seed=2)
    gate_FD *= 0.3  # activations are looked at where they bend
    gate_TF, up_TF = (
        Packed(weight, quantization).multiply(x_TD, torch.float32).double() for weight in (gate_FD, up_FD)
    )
    y_TF = Packed(gate_FD, quantization, up_NK=up_FD, activation=activation).multiply(x_TD, torch.float32)
    assert_close(y_TF.double(), ACTIVATIONS[activation](gate_TF) * up_TF, rtol=2e-6, atol=2e-6)
    assert_close(native.gated(gate_FD, up_FD, activation, quantization)(x_TD), y_TF.bfloat16(), rtol=0, atol=0)


def test_an_unknown_activation_or_unequal_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        native.gated(random(4, 8), random(4, 8), "tanh", "int8")
    with pytest.raises(ValueError, match=r"gate is \(4, 8\), but up is \(5, 8\)"):
        native.gated(random(4, 8), random(5, 8), "silu", "int8")


@pytest.mark.parametrize("num_inputs", [7, 16, 40, 64, 130])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_an_embedding_reads_rows_and_multiplies_with_one_storage(quantization: Quantization, num_inputs: int) -> None:
    weight_VD, token_ids_T = random(77, num_inputs), torch.tensor([76, 0, 31, 32, 32, 5, 6])
    embedding = native.embedding(weight_VD, quantization)
    expected = reference.embedding(weight_VD, quantization)
    assert_close(embedding.rows(token_ids_T, 3.7), expected.rows(token_ids_T, 3.7), rtol=0, atol=0)
    assert embedding.num_bytes == Packed(weight_VD, quantization).num_bytes


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_logits_are_float32_and_capped(quantization: Quantization, cap: float | None) -> None:
    weight_VD, x_BD = random(77, 130), random(3, 130, seed=1) * 3
    logits_BV = native.embedding(weight_VD, quantization).logits(x_BD, cap)
    plain_BV = Packed(weight_VD, quantization).multiply(x_BD, torch.float32).double()
    assert logits_BV.dtype == torch.float32
    assert_close(logits_BV.double(), reference.softcap(plain_BV, cap), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("token_id", [-1, 77, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"token {token_id} is outside a vocabulary of 77"):
        native.embedding(random(77, 40), "int8").rows(torch.tensor([0, token_id]), 1.0)


def test_an_int4_embedding_is_int8() -> None:
    weight_VD = random(77, 130)
    ids, x_BD = torch.arange(77), random(3, 130)
    four, eight = native.embedding(weight_VD, "int4"), native.embedding(weight_VD, "int8")
    assert torch.equal(four.rows(ids, 1.0), eight.rows(ids, 1.0))
    assert torch.equal(four.logits(x_BD, None), eight.logits(x_BD, None))


def test_x_of_another_width_or_dtype_is_refused() -> None:
    multiply = native.linear(random(4, 8), None, "int8")
    with pytest.raises(ValueError, match=r"x is \(2, 9\).*takes 8 inputs"):
        multiply(random(2, 9))
    with pytest.raises(ValueError, match="float16"):
        multiply(torch.ones(2, 8, dtype=torch.float16))


@pytest.mark.parametrize(("quantization", "bits"), [("none", 16), ("int8", 8), ("int4", 4.125)])
def test_memory_is_what_the_bits_say(quantization: Quantization, bits: float) -> None:
    num_bytes = native.linear(random(320, 1024), None, quantization).num_bytes
    assert num_bytes == 320 * 1024 * bits / 8 + (320 * 4 if quantization == "int8" else 0)


def test_float32_weights_stay_float32() -> None:
    weight_NK, x_TK = torch.randn(45, 300), torch.randn(5, 300)
    assert_close(native.linear(weight_NK, None, "none")(x_TK), x_TK @ weight_NK.T, rtol=1e-5, atol=1e-4)
    gated = native.gated(weight_NK, weight_NK, "silu", "none")(x_TK)
    assert_close(gated, reference.gated(weight_NK, weight_NK, "silu", "none")(x_TK), rtol=1e-5, atol=1e-3)
    embedding = native.embedding(weight_NK, "none")
    assert torch.equal(embedding.rows(torch.tensor([3]), 1.0), weight_NK[3:4])
