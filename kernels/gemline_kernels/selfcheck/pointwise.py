"""Norms and rotation against their formulas in float64."""

import torch

from gemline_kernels.backend import Backend, RopeTable
from gemline_kernels.reference import rope_table
from gemline_kernels.selfcheck.compare import compare, rounding

_EPS = 1e-6
_NUM_POSITIONS = 9000


def check_pointwise(backend: Backend, dtype: torch.dtype, head_dim: int) -> None:
    """`rms_norm`, `add_norm` and `rope_write`, for rows that fill registers and rows that do not."""
    random = torch.Generator().manual_seed(0)
    for num_rows, width in ((1, 1024), (5, 72), (130, 520)):
        _check_norms(backend, dtype, num_rows, width, random)
    for num_rows in (1, 37):
        _check_rope(backend, dtype, num_rows, head_dim, random)


def _check_norms(backend: Backend, dtype: torch.dtype, num_rows: int, width: int, random: torch.Generator) -> None:
    x_TD, residual_TD = (3 * torch.randn((2, num_rows, width), generator=random)).to(dtype)
    post_D, next_D = torch.randn((2, width), generator=random).to(dtype)
    case, relative = f"{num_rows} rows of {width}", rounding(dtype)
    expected_TD = _norm(x_TD.double(), post_D)
    x, residual, post, following = (given.to(backend.device) for given in (x_TD, residual_TD, post_D, next_D))
    normed_TD = backend.rms_norm(x, post, _EPS)
    compare("rms_norm", case, normed_TD, expected_TD, 1e-5 + relative * expected_TD.abs())
    new_TD, next_TD = backend.add_norm(x, residual, post, following, _EPS)
    sum_TD = residual_TD.double() + expected_TD
    compare("add_norm", case + ", sum", new_TD, sum_TD, 1e-5 + relative * sum_TD.abs())
    exact_TD = _norm(new_TD.cpu().double(), next_D)  # of the sum as it was rounded
    compare("add_norm", case + ", normed", next_TD, exact_TD, 1e-5 + relative * exact_TD.abs())


def _norm(x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    return x_TD / (x_TD.square().mean(-1, keepdim=True) + _EPS).sqrt() * (1 + weight_D.double())


def _check_rope(backend: Backend, dtype: torch.dtype, num_rows: int, width: int, random: torch.Generator) -> None:
    num_heads, num_groups, block_size = 6, 2, 16
    table = rope_table(_NUM_POSITIONS, width, 10000.0)
    positions_T = torch.randint(0, _NUM_POSITIONS, (num_rows,), generator=random)
    slots_T = torch.randperm(10 * block_size, generator=random)[:num_rows]
    projected = torch.randn((num_rows, num_heads + 2 * num_groups, width), generator=random).to(dtype)
    pools = torch.zeros((2, 10, block_size, num_groups, width), dtype=dtype, device=backend.device)
    given, positions, slots, *parts = (
        tensor.to(backend.device) for tensor in (projected, positions_T, slots_T, *table)
    )
    query_THK = backend.rope_write(given, RopeTable(*parts), positions, pools[0], pools[1], slots, num_heads)
    angles_TK = torch.complex(table.cos_PK.double(), table.sin_PK.double())[positions_T]
    pairs = torch.complex(*projected.double().chunk(2, dim=-1)) * angles_TK[:, None]
    turned = torch.cat((pairs.real, pairs.imag), dim=-1)
    expected = torch.zeros(pools.shape, dtype=torch.float64)
    keys, values = expected.flatten(1, 2)
    keys[slots_T], values[slots_T] = turned[:, num_heads:-num_groups], projected[:, -num_groups:].double()
    case, queries = f"{num_rows} rows of head width {width}", turned[:, :num_heads]
    compare("rope_write", case + ", queries", query_THK, queries, 1e-5 + rounding(dtype) * queries.abs())
    compare("rope_write", case + ", cache", pools, expected, 1e-5 + rounding(dtype) * expected.abs())
