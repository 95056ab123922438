"""Torch's own attention over dense keys, beside ours: FlexAttention computes the same, SDPA has no cap."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from bench.gpu.attention import Inputs, Shape, decode_figures, inputs, prefill_figures
from bench.gpu.bench import Bench, Case
from bench.gpu.clock import Call
from bench.gpu.plan import DECODE, PREFILL
from bench.gpu.report import Row
from support.random_model import CAP
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

_BF16 = torch.bfloat16


class Dense(NamedTuple):
    """The same numbers as of paged inputs, [B, heads, positions, K]."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def dense(paged: Inputs) -> Dense:
    """Copies."""
    shape, blocks = paged.shape, paged.table_BP.long()
    rows = (shape.num_sequences, shape.num_queries)
    keys, values = (
        part[blocks].flatten(1, 2)[:, : shape.context].transpose(1, 2).contiguous() for part in paged.pool[:2]
    )
    query_BTHK = paged.query_THK.view(*rows, *paged.query_THK.shape[1:])
    return Dense(query_BTHK.transpose(1, 2).contiguous(), keys, values)


def flexible(bench: Bench) -> Iterator[Case]:
    """FlexAttention: compiled for each shape, which takes seconds, so of a few shapes only."""
    for shape in _shapes(bench):
        yield Case(shape.name, partial(measure_flexible, bench, shape))


def uncapped(bench: Bench) -> Iterator[Case]:
    """SDPA, for scale."""
    for shape in _shapes(bench):
        if shape.num_queries == 1 or shape.window is None:
            yield Case(shape.name, partial(measure_uncapped, bench, shape))


def _shapes(bench: Bench) -> Iterator[Shape]:
    """Decode of large batches, long prompts, decode of one sequence; the models in turn."""
    sizes = bench.sizes
    longest, (number, length) = max(sizes.contexts), sizes.prompts[0]
    for batch, context, num_queries in (
        (max(sizes.batches), longest, 1),
        (number, length, length),
        (min(sizes.batches), longest, 1),
    ):
        for model in (sizes.models[0], sizes.models[-1]):
            for window in (None, model.window):
                if window is None or context > window:
                    yield Shape(model, batch, num_queries, context, window, _BF16)


def measure_flexible(bench: Bench, shape: Shape) -> Row:
    """Beside ours over the same keys."""
    torch._dynamo.reset()  # after a few shapes it would compile no more of them
    attend = torch.compile(flex_attention, dynamic=False) if bench.is_gpu else flex_attention
    options: dict[str, Any] = {
        "score_mod": _capped,
        "block_mask": _mask(shape, bench.device),
        "scale": shape.model.scale,
        "enable_gqa": True,
    }
    return _measure(bench, shape, lambda data: attend(*data, **options), is_same=True)


def measure_uncapped(bench: Bench, shape: Shape) -> Row:
    """Of a local layer the window's keys alone."""
    seen = slice(-shape.window if shape.window and shape.num_queries == 1 else None, None)

    def attend(data: Dense) -> torch.Tensor:
        return scaled_dot_product_attention(
            data.query, data.keys[:, :, seen], data.values[:, :, seen],
            is_causal=shape.num_queries > 1, scale=shape.model.scale, enable_gqa=True,
        )  # fmt: skip

    return _measure(bench, shape, attend, is_same=False)


def _measure(bench: Bench, shape: Shape, attend: Callable[[Dense], torch.Tensor], *, is_same: bool) -> Row:
    """How many times as fast ours is, and how far the results are apart, for the first set of data."""
    num_sets = bench.num_sets(shape.num_bytes) if shape.num_queries == 1 else 1
    paged = [inputs(bench, shape, seed) for seed in range(num_sets)]
    sets = [dense(one) for one in paged]
    plan = paged[0].plan() if shape.num_queries == 1 else None
    ours = paged[0].prefill() if plan is None else paged[0].decode(plan)
    theirs = attend(sets[0]).transpose(1, 2).flatten(0, 1)
    apart = float((theirs.float() - ours.float()).norm() / ours.float().norm())
    if is_same and not apart < 0.05:
        raise ValueError(f"{shape.name}: the results are {apart:.3g} of their size apart")
    calls: list[Call] = [partial(attend, one) for one in sets]
    seconds = bench.clock.seconds(calls)
    figures = (prefill_figures if plan is None else decode_figures)(bench, shape, seconds)
    section = PREFILL if plan is None else DECODE
    figures["x_slower_than_ours"] = seconds / bench.report.seconds(section, shape.name)
    return Row(shape.name, seconds, figures | ({"apart": apart} if is_same else {}))


def _capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return CAP * torch.tanh(score / CAP)


def _mask(shape: Shape, device: torch.device) -> BlockMask | None:
    """None where every query sees every key."""
    if shape.num_queries == 1 and (shape.window is None or shape.window >= shape.context):
        return None
    before, window = shape.context - shape.num_queries, shape.window or shape.context

    def is_seen(_: torch.Tensor, __: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query + before) & (query + before - key < window)

    return create_block_mask(is_seen, None, None, shape.num_queries, shape.context, device=str(device))
