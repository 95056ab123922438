"""Triton's norms, rotation and gated activation against their formulas in float64."""

import pytest
import torch
from support.device import DEVICE
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import RopeTable
from gemline_kernels.gpu import pointwise
from gemline_kernels.gpu.device import pointwise as device
from gemline_kernels.scales import Scales

EPS = 1e-6
SHAPES = [(1, 1024), (5, 24), (3, 7), (2, 80), (9, 600)]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def check(actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    assert_close(actual.double(), exact, rtol=2e-6 if dtype == torch.float32 else 2**-8, atol=4e-6)


def normed(x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    return x_TD.double() / (x_TD.double().square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + weight_D.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_multiplies_by_one_plus_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x_TD, weight_D = (torch.randn(shape) * 3).to(DEVICE, dtype), torch.randn(shape[1]).to(DEVICE, dtype)
    check(pointwise.rms_norm(x_TD, weight_D, EPS), normed(x_TD, weight_D), dtype)


def test_rms_norm_of_zeros_is_zero(dtype: torch.dtype) -> None:
    x_TD, weight_D = (torch.tensor(values, dtype=dtype, device=DEVICE) for values in ([[0.0] * 8], [1.0] * 8))
    assert pointwise.rms_norm(x_TD, weight_D, EPS).eq(0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm_adds_the_normed_and_norms_the_rounded_sum(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x_TD, residual_TD = (torch.randn((2, *shape)) * 3).to(DEVICE, dtype)
    post_D, next_D = torch.randn(2, shape[1]).to(DEVICE, dtype)
    before_TD = residual_TD.clone()
    new_TD, normed_TD = pointwise.add_norm(x_TD, residual_TD, post_D, next_D, EPS)
    check(new_TD, residual_TD.double() + normed(x_TD, post_D), dtype)
    check(normed_TD, normed(new_TD, next_D), dtype)
    assert residual_TD.equal(before_TD)


@pytest.mark.parametrize("width", [24, 80, 600])
def test_embed_scales_and_norms_the_rounded_rows(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    weight_VD, first_D = torch.randn(11, width).to(DEVICE, dtype), torch.randn(width).to(DEVICE, dtype)
    ids_T = torch.tensor([3, 10, 0, 3], device=DEVICE)
    residual_TD, out_TD = pointwise.embed(ids_T, weight_VD, first_D, 6.25, EPS)
    assert residual_TD.equal((weight_VD[ids_T].float() * 6.25).to(dtype))
    check(out_TD, normed(residual_TD, first_D), dtype)


@pytest.mark.parametrize(("num_heads", "num_groups", "width"), [(4, 2, 16), (3, 1, 64), (2, 2, 256)])
def test_rope_write_rotates_queries_and_keys_and_fills_the_slots(
    dtype: torch.dtype, num_heads: int, num_groups: int, width: int
) -> None:
    torch.manual_seed(0)
    table = reference.rope_table(50, width, 10000.0, DEVICE)
    projected_TMK = torch.randn(5, num_heads + 2 * num_groups, width).to(DEVICE, dtype)
    positions_T, slots_T = torch.tensor([[0, 1, 49, 7, 30], [13, 0, 5, 31, 8]], device=DEVICE)
    pools = torch.full((2, 2, 2, 16, num_groups, width), torch.nan, dtype=dtype, device=DEVICE)
    expected = reference.rope_write(projected_TMK, table, positions_T, pools[0, 0], pools[0, 1], slots_T, num_heads)
    actual = pointwise.rope_write(projected_TMK, table, positions_T, pools[1, 0], pools[1, 1], slots_T, num_heads)
    rtol = 1e-6 if dtype == torch.float32 else 2**-7
    assert_close(actual, expected, rtol=rtol, atol=1e-6)
    assert_close(pools[1], pools[0], rtol=rtol, atol=1e-6, equal_nan=True)


def test_rope_write_of_a_padding_row_writes_nowhere() -> None:
    memory = torch.full((4, 1, 16, 1, 16), torch.nan, device=DEVICE)
    pools = memory[1:3]  # a slot of -1 that is written is in memory of ours, not in whoever's lies before it
    projected_TMK, table = torch.ones(2, 3, 16, device=DEVICE), reference.rope_table(4, 16, 10000.0, DEVICE)
    positions_T, slots_T = torch.tensor([[1, 2], [-1, 3]], device=DEVICE)
    pointwise.rope_write(projected_TMK, table, positions_T, pools[0], pools[1], slots_T, 1)
    assert memory.isnan().sum() == memory.numel() - 2 * 16


def test_rope_write_scales_and_saturates_what_becomes_fp8() -> None:
    keys, values = torch.zeros((2, 1, 16, 1, 16), device=DEVICE).to(torch.float8_e4m3fn)
    projected_TMK = torch.tensor([1.0, 3.0, 1e5], device=DEVICE).view(1, 3, 1).repeat(1, 1, 16)
    projected_TMK[0, 1, 8:] = 0.0
    cos, sin = torch.tensor([[[1.0] * 8], [[0.0] * 8]], device=DEVICE)
    position, slot = torch.tensor([[0], [2]], device=DEVICE)
    device.rope_write[(1, 3)](
        projected_TMK, cos, sin, position, slot, torch.empty_like(projected_TMK[:, :1]), keys, values, 2.0, 0.5,
        HEADS=1, GROUPS=1, WIDTH=16,
    )  # fmt: skip
    assert keys[0, 2, 0].float().tolist() == [6.0] * 8 + [0.0] * 8
    assert values[0, 2, 0].float().tolist() == [448.0] * 16
    assert keys.float().count_nonzero() == 8
    assert values.float().count_nonzero() == 16


@pytest.mark.parametrize("width", [24, 1024, 1500])
def test_geglu_multiplies_the_activated_gate_by_up(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    gate_up_TF = (torch.randn(3, 2 * width) * 5).to(DEVICE, dtype)
    gate_up_TF[0, :2] = torch.tensor([-1e4, 1e4])
    gate, up = gate_up_TF.double().chunk(2, dim=1)
    exact = torch.nn.functional.gelu(gate, approximate="tanh") * up
    check(pointwise.geglu(gate_up_TF, "gelu_pytorch_tanh"), exact, dtype)


def test_other_activations_are_the_references() -> None:
    gate_up_TF = torch.randn(3, 8, device=DEVICE)
    gate, up = gate_up_TF.chunk(2, dim=1)
    assert pointwise.geglu(gate_up_TF, "silu").equal(reference.geglu(gate, up, "silu"))


def test_rope_write_stores_in_fp8_what_the_reference_stores() -> None:
    """To the bit, as scales that are powers of two divide exactly; angles of 0 and of 90 degrees turn exactly too."""
    scales, random = Scales(0.25, 2.0), torch.Generator(DEVICE).manual_seed(0)
    projected_TMK = torch.randn(6, 8, 16, generator=random, device=DEVICE) * 50
    projected_TMK[0] = 1e4  # beyond either range
    quarter = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=DEVICE)  # cosines and sines of two positions
    table = RopeTable(*(part[:, None].repeat(1, 8) for part in quarter))
    positions_T, slots_T = torch.tensor([[0, 1, 1, 0, 1, 0], [3, 0, 31, 7, 8, 9]], device=DEVICE)
    pools = [torch.zeros((2, 2, 16, 2, 16), device=DEVICE).to(torch.float8_e4m3fn) for _ in range(2)]
    for module, (keys, values) in zip((pointwise, reference), pools, strict=True):
        module.rope_write(projected_TMK, table, positions_T, keys, values, slots_T, 4, scales)
    ours, expected = (pool.float() for pool in pools)
    assert ours.equal(expected)
    assert ours[:, 0, 3].abs().amin() == 448.0
