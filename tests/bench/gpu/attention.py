"""Paged attention of one layer: decode as a share of the copy's bandwidth, prefill as one of the product's rate."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from bench.gpu.bench import Bench, Case
from bench.gpu.clock import Call
from bench.gpu.report import Row, Target
from support.published import Model
from support.random_model import CAP, random_pool

from gemline_kernels.gpu import attention
from gemline_kernels.layers import KeysValues

FP8 = torch.float8_e4m3fn
_LARGE, _LONG = 64 * 4096, 8192  # positions of a batch, and of a sequence, for which there is a target


@dataclass(frozen=True)
class Shape:
    """`num_sequences` sequences of `context` positions each, the last `num_queries` of which ask."""

    model: Model
    num_sequences: int
    num_queries: int
    context: int
    window: int | None
    stored: torch.dtype

    @property
    def name(self) -> str:
        kind, cache = "local" if self.window else "global", "fp8" if self.stored == FP8 else "bf16"
        return f"{self.model.name} {self.num_sequences} x {self.context} {kind} {cache}"

    @property
    def num_bytes(self) -> int:
        """Keys and values that the last query of each sequence sees."""
        seen = min(self.context, self.window or self.context)
        return 2 * self.num_sequences * seen * self.model.num_groups * self.model.head_dim * self.stored.itemsize

    @property
    def num_operations(self) -> int:
        """Of both products, of the scores that count."""
        first = self.context - self.num_queries
        seen = sum(min(position + 1, self.window or position + 1) for position in range(first, self.context))
        return 4 * self.num_sequences * seen * self.model.num_heads * self.model.head_dim


@dataclass(frozen=True)
class Inputs:
    """Random ones, in blocks of a pool in random order."""

    shape: Shape
    query_THK: torch.Tensor
    pool: KeysValues
    table_BP: torch.Tensor
    sequences: attention.Sequences

    def decode(self, plan: attention.DecodePlan) -> torch.Tensor:
        """out_THK; every sequence asks once."""
        out_THK = torch.empty_like(self.query_THK)
        shape = self.shape
        attention.decode(
            self.query_THK, self.pool.keys, self.pool.values, self.table_BP, self.sequences, plan, out_THK,
            window=shape.window, scale=shape.model.scale, cap=CAP,
        )  # fmt: skip
        return out_THK

    def prefill(self) -> torch.Tensor:
        """out_THK; every sequence asks more than once."""
        out_THK = torch.empty_like(self.query_THK)
        shape = self.shape
        attention.prefill(
            self.query_THK, self.pool.keys, self.pool.values, self.table_BP, self.sequences, out_THK,
            window=shape.window, scale=shape.model.scale, cap=CAP,
        )  # fmt: skip
        return out_THK

    def plan(self) -> attention.DecodePlan:
        """For all layers with the window."""
        shape, lengths = self.shape, self.sequences.decode_len
        num_items = attention.num_decode_items(shape.num_sequences, shape.model.num_groups, lengths.device)
        return attention.plan_decode(lengths, num_items, self.pool.keys.shape[1], shape.window)


def inputs(bench: Bench, shape: Shape, seed: int = 0, *, is_shared: bool = False) -> Inputs:
    """`is_shared`: all of one block, to compile for that shape where there is no memory for it."""
    model, size = shape.model, bench.sizes.block_size
    num_pages = -(-shape.context // size)
    num_blocks = num_pages * shape.num_sequences
    pool = random_pool(model, 1 if is_shared else num_blocks, size, shape.stored, bench.device, seed)
    table = torch.randperm(num_blocks, device=bench.device).int().view(shape.num_sequences, num_pages)
    heads = (shape.num_sequences * shape.num_queries, model.num_heads, model.head_dim)
    query_THK = torch.randn(heads, device=bench.device, dtype=torch.bfloat16) * 4
    starts = torch.arange(shape.num_sequences + 1) * shape.num_queries
    lengths = torch.full((shape.num_sequences,), shape.context)
    repeats = model.num_heads // model.num_groups
    sequences = attention.Sequences.of(starts, lengths, repeats, bench.device)
    return Inputs(shape, query_THK, pool, table * 0 if is_shared else table, sequences)


def decode(bench: Bench) -> Iterator[Case]:
    """One query a sequence. Large batches first: most of a step is theirs."""
    sizes = bench.sizes
    for batch, context, stored in product(sizes.batches, sizes.contexts, (torch.bfloat16, FP8)):
        for model, is_local in product(sizes.models, (False, True)):
            shape = Shape(model, batch, 1, context, model.window if is_local else None, stored)
            yield Case(shape.name, partial(measure_decode, bench, shape))
    for batch in sizes.batches:
        yield Case(f"plan of {batch}", partial(measure_plan, bench, batch))


def decode_calls(bench: Bench, shape: Shape) -> list[Call]:
    """Each over a pool of its own; planned once, as for all layers of a step."""
    sets = [inputs(bench, shape, seed) for seed in range(bench.num_sets(shape.num_bytes))]
    plan = sets[0].plan()
    return [partial(one.decode, plan) for one in sets]


def measure_decode(bench: Bench, shape: Shape) -> Row:
    """A layer's attention."""
    seconds = bench.clock.seconds(decode_calls(bench, shape))
    return Row(shape.name, seconds, decode_figures(bench, shape, seconds), decode_target(shape))


def decode_figures(bench: Bench, shape: Shape, seconds: float) -> dict[str, float]:
    """Keys and values read."""
    rate = shape.num_bytes / seconds
    return {"GB_per_s": rate / 1e9, "of_copy": rate / bench.bytes_per_s}


def decode_target(shape: Shape) -> Target | None:
    """Of those shapes that keep the memory busy."""
    if shape.num_sequences * shape.context >= _LARGE:
        return Target("of_copy", 0.9)
    return Target("of_copy", 0.75) if (shape.num_sequences, shape.context) == (1, _LONG) else None


def measure_plan(bench: Bench, batch: int) -> Row:
    """What is shared out once a step, for each kind of layer."""
    model = bench.sizes.models[0]
    planned = inputs(bench, Shape(model, batch, 1, max(bench.sizes.contexts), None, torch.bfloat16), is_shared=True)
    return Row(f"plan of {batch}", bench.clock.seconds([planned.plan] * 20))


def prefill(bench: Bench) -> Iterator[Case]:
    """Whole prompts. A window that no prompt is longer than makes no other case."""
    for (number, length), model, is_local in product(bench.sizes.prompts, bench.sizes.models, (False, True)):
        if not is_local or length > model.window:
            shape = Shape(model, number, length, length, model.window if is_local else None, torch.bfloat16)
            yield Case(shape.name, partial(measure_prefill, bench, shape))


def measure_prefill(bench: Bench, shape: Shape) -> Row:
    """A layer's attention."""
    seconds = bench.clock.seconds([inputs(bench, shape).prefill])
    target = Target("of_product", 0.65 if shape.model.head_dim > 128 else 0.55)
    return Row(shape.name, seconds, prefill_figures(bench, shape, seconds), target)


def prefill_figures(bench: Bench, shape: Shape, seconds: float) -> dict[str, float]:
    """Operations done."""
    rate = shape.num_operations / seconds
    return {"TFLOP_per_s": rate / 1e12, "of_product": rate / bench.flops_per_s}
