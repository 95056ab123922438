"""Norms and rotation of every backend against their formulas in float64."""

import pytest
import torch
from support.backends import backend_or_skip
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Backend

EPS = 1e-6
SHAPES = [(1, 1024), (5, 24), (3, 7), (2, 80), (200, 600), (0, 64)]


# The norms and rotation of "onednn" are the reference's.
@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return backend_or_skip(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    assert isinstance(request.param, torch.dtype)
    return request.param


def check(actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    assert_close(actual.double(), exact, rtol=2e-6 if dtype == torch.float32 else 2**-8, atol=2e-6)


def normed(x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    return x_TD.double() / (x_TD.double().square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + weight_D.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_multiplies_by_one_plus_weight(backend: Backend, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x_TD, weight_D = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[1]).to(dtype)
    check(backend.rms_norm(x_TD, weight_D, EPS), normed(x_TD, weight_D), dtype)


def test_rms_norm_of_zeros_is_zero(backend: Backend, dtype: torch.dtype) -> None:
    assert backend.rms_norm(torch.zeros(1, 8, dtype=dtype), torch.ones(8, dtype=dtype), EPS).eq(0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm_adds_the_normed_and_norms_the_rounded_sum(
    backend: Backend, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x_TD, residual_TD = (torch.randn((2, *shape)) * 3).to(dtype)
    post_D, next_D = torch.randn(2, shape[1]).to(dtype)
    before_TD = residual_TD.clone()
    new_TD, normed_TD = backend.add_norm(x_TD, residual_TD, post_D, next_D, EPS)
    check(new_TD, residual_TD.double() + normed(x_TD, post_D), dtype)
    check(normed_TD, normed(new_TD, next_D), dtype)
    assert residual_TD.equal(before_TD)


@pytest.mark.parametrize("width", [2, 16, 80, 128, 256])
@pytest.mark.parametrize("num_rows", [1, 70])
def test_rope_write_turns_queries_and_keys_and_fills_the_named_slots_alone(
    backend: Backend, dtype: torch.dtype, width: int, num_rows: int
) -> None:
    torch.manual_seed(0)
    num_heads, num_groups = 6, 3
    table, positions_T = reference.rope_table(8192, width, 10000.0), torch.randint(0, 8192, (num_rows,))
    projected = torch.randn(num_rows, num_heads + 2 * num_groups, width).to(dtype)
    pools = torch.full((2, 25, 4, num_groups, width), 7.0, dtype=dtype)
    slots_T = torch.randperm(100)[:num_rows]
    query_THK = backend.rope_write(projected, table, positions_T, pools[0], pools[1], slots_T, num_heads)
    angles = torch.complex(table.cos_PK.double(), table.sin_PK.double())[positions_T]
    pairs = torch.complex(*projected.double().chunk(2, dim=-1)) * angles[:, None]
    turned = torch.cat((pairs.real, pairs.imag), dim=-1)
    expected = torch.full(pools.shape, 7.0, dtype=torch.float64)
    expected[0].flatten(0, 1)[slots_T] = turned[:, num_heads : num_heads + num_groups]
    expected[1].flatten(0, 1)[slots_T] = projected[:, num_heads + num_groups :].double()
    check(query_THK, turned[:, :num_heads], dtype)
    check(pools, expected, dtype)


def test_native_rows_are_the_same_for_one_thread_and_two(dtype: torch.dtype) -> None:
    native, num_threads = backend_or_skip("native"), torch.get_num_threads()
    x_TD, residual_TD, weight_D = torch.randn(300, 512).to(dtype), torch.randn(300, 512).to(dtype), torch.randn(512)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(native.add_norm(x_TD, residual_TD, weight_D.to(dtype), weight_D.to(dtype), EPS))
    torch.set_num_threads(num_threads)
    assert results[0].residual_TD.equal(results[1].residual_TD)
    assert results[0].normed_TD.equal(results[1].normed_TD)
