"""Paged attention on inputs where cap, window, scale and head mapping matter.

With plain random inputs scores are small, tanh is nearly straight, and a kernel without any cap passes. So there are
three kinds of input: scores about as large as the cap; scores all near -cap, where a key that should be hidden counts
as much as those that are seen; and small scores, all keys weighing alike, with large values at the window's edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gemline_kernels.backend import Backend
from gemline_kernels.selfcheck.compare import compare, rounding

_GROUPS, _PER_GROUP = 2, 7  # kernels take query heads four, two and one at a time: seven are all of that
_BLOCK_SIZE, _LARGE_BLOCK_SIZE = 16, 64  # of one tile of a GPU's kernels, and of several
_SMALL_WINDOW = 21
_LARGEST_WINDOW = 8192  # a longer one would take too long; the code is the same
_NARROW = 64
_UNCAPPED_SCORE = 12.0
_EDGE = 6  # positions around an edge


@dataclass(frozen=True, slots=True)
class _Case:
    """Sequences as (number of queries, context length)."""

    name: str
    lengths: tuple[tuple[int, int], ...]
    window: int | None
    kind: str
    block_size: int = _BLOCK_SIZE
    is_long: bool = False  # then on narrow heads: positions matter, not the width, and half a second is all there is


@dataclass(frozen=True, slots=True)
class _Layer:
    """The constants of the model's layers."""

    scale: float
    cap: float | None
    width: int
    dtype: torch.dtype


class _Exact(NamedTuple):
    """Sums of weight * value and of weight * |value|, float64."""

    out_THK: torch.Tensor
    magnitude_THK: torch.Tensor


def check_attention(
    backend: Backend, dtype: torch.dtype, *, scale: float, cap: float | None, window: int | None, head_dim: int
) -> None:
    """Prefill, decode and both in one batch, in permuted blocks, with NaN wherever nothing may be read."""
    for seed, case in enumerate(_cases(window)):
        width = min(head_dim, _NARROW) if case.is_long else head_dim
        _check_case(backend, _Layer(scale, cap, width, dtype), case, torch.Generator().manual_seed(seed))


def _cases(window: int | None) -> Iterator[_Case]:
    small, mixed = _SMALL_WINDOW, ((1, 1), (40, 75), (1, 16), (1, 17), (2, 33), (1, 140), (5, 5))
    edges = ((1, small - 1), (1, small), (1, small + 1), (1, 3 * small), (30, small + 31))
    yield _Case("large scores", mixed, None, "large", _LARGE_BLOCK_SIZE)
    yield _Case("large scores in a window", mixed, small, "large")
    yield _Case("all scores near -cap", ((4, 4), (20, 40), (1, 30)), small, "negative")
    yield _Case("edges of a window", edges, small, "flat")
    if window is not None and window <= _LARGEST_WINDOW:
        beyond = ((1, window + 1), (3, window + 2))
        yield _Case("edges of the model's window", beyond, window, "flat", _LARGE_BLOCK_SIZE, is_long=True)


def _check_case(backend: Backend, layer: _Layer, case: _Case, random: torch.Generator) -> None:
    size = case.block_size
    num_pages = [-(-context // size) for _, context in case.lengths]
    order = torch.randperm(sum(num_pages) + 1, generator=random)
    pool = torch.full((2, len(order), size, _GROUPS, layer.width), torch.nan, dtype=layer.dtype)
    table_BP = torch.zeros((len(num_pages), max(num_pages)), dtype=torch.int64)
    queries, expected, first, largest_value = [], [], 0, 0.0
    for sequence, (num_rows, context) in enumerate(case.lengths):
        query_THK, both = _inputs(layer, case, num_rows, context, random)
        queries.append(query_THK)
        largest_value = max(largest_value, float(both[1].abs().max()))
        expected.append(_exact(layer, query_THK.double(), both.double(), case.window))
        table_BP[sequence, : num_pages[sequence]] = order[first : first + num_pages[sequence]]
        first_key = 0 if case.window is None else max(0, context - num_rows - case.window + 1)
        positions = torch.arange(first_key, context)
        pool[:, table_BP[sequence, positions // size], positions % size] = both[:, first_key:]
        first += num_pages[sequence]
    actual = backend.paged_attention(
        torch.cat(queries).to(backend.device),
        pool[0].to(backend.device),
        pool[1].to(backend.device),
        table_BP.to(backend.device),
        torch.tensor([0, *(num_rows for num_rows, _ in case.lengths)]).cumsum(0),
        torch.tensor([context for _, context in case.lengths]),
        window=case.window,
        scale=layer.scale,
        cap=layer.cap,
    )
    exact_THK, magnitude_THK = map(torch.cat, zip(*expected, strict=True))
    name = f"{case.name}, scale {layer.scale:.4g}, cap {layer.cap}, window {case.window}, head width {layer.width}"
    # A float32 score near 50 is exact to about 1e-5, and a weight's relative error is its score's error.
    tolerance = 1e-3 + 2e-5 * largest_value + rounding(layer.dtype) * exact_THK.abs()
    if layer.dtype == torch.bfloat16:  # tensor cores multiply values by weights that are rounded, too
        tolerance += rounding(layer.dtype) * magnitude_THK
    compare("paged_attention", name, actual, exact_THK, tolerance)


def _inputs(
    layer: _Layer, case: _Case, num_rows: int, context: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """query_THK, and keys and values [2, J, G, K]."""
    query_THK = torch.randn((num_rows, _GROUPS * _PER_GROUP, layer.width), generator=random)
    both = torch.randn((2, context, _GROUPS, layer.width), generator=random)
    largest = layer.cap or _UNCAPPED_SCORE
    match case.kind:
        case "large":
            query_THK *= largest / (layer.scale * layer.width**0.5)
        case "negative":
            direction_GK = torch.randn((_GROUPS, layer.width), generator=random)
            direction_GK /= direction_GK.norm(dim=-1, keepdim=True)
            query_THK = 0.05 * query_THK + direction_GK.repeat_interleave(_PER_GROUP, dim=0)
            both[0] = 0.02 * both[0] - direction_GK * (4 * largest / layer.scale)
        case "flat":
            query_THK /= layer.scale * layer.width**0.5
            for edge in (context - 1, context - num_rows, *_window_edges(case.window, num_rows, context)):
                both[1, max(0, edge - _EDGE) : edge + _EDGE] *= max(1.0, context / 32)
    return query_THK.to(layer.dtype), both.to(layer.dtype)


def _window_edges(window: int | None, num_rows: int, context: int) -> tuple[int, ...]:
    """Where the windows of the first row and of the last begin."""
    return () if window is None else (max(0, context - num_rows - window + 1), max(0, context - window))


def _exact(layer: _Layer, query_THK: torch.Tensor, both: torch.Tensor, window: int | None) -> _Exact:
    """softmax(cap * tanh(scale * query . key / cap)) . values in float64, over the keys each row sees."""
    keys_JGK, values_JGK = both
    query_TGRK = query_THK.view(-1, _GROUPS, _PER_GROUP, layer.width)
    scores_GRTJ = torch.einsum("tgrk,jgk->grtj", query_TGRK, keys_JGK) * layer.scale
    if layer.cap is not None:
        scores_GRTJ = layer.cap * torch.tanh(scores_GRTJ / layer.cap)
    num_rows, context = len(query_THK), len(keys_JGK)
    row_T1, key_J = torch.arange(context - num_rows, context)[:, None], torch.arange(context)
    seen_TJ = (key_J <= row_T1) if window is None else (key_J <= row_T1) & (key_J > row_T1 - window)
    weights_GRTJ = scores_GRTJ.masked_fill(~seen_TJ, -torch.inf).softmax(-1)
    sums = (torch.einsum("grtj,jgk->tgrk", weights_GRTJ, part).flatten(1, 2) for part in (values_JGK, values_JGK.abs()))
    return _Exact(*sums)
