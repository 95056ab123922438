"""A whole decode step with random weights: replayed as one CUDA graph, as a share of its roofline."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from bench.gpu.attention import FP8
from bench.gpu.bench import Bench, Case
from bench.gpu.clock import Call
from bench.gpu.plan import STEP
from bench.gpu.report import Row, Target
from bench.gpu.roofline import Step
from support.published import Model
from support.random_model import random_pool, random_weights

from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import backend
from gemline_kernels.gpu.decode_step import Buffers, DecodeStep, Graph
from gemline_kernels.layers import KeysValues, Weights

_SPARE_BLOCKS = 4  # of a sequence, for as many steps as are timed
_KEPT_BYTES = 5e9  # for activations, logits and the graph
_AT_LEAST = {"2b": 0.70, "9b": 0.80, "27b": 0.85}  # of the roofline, one sequence in bfloat16
_LARGE_AT_LEAST, _INT4_AT_LEAST = 0.80, 2.8


@dataclass(frozen=True)
class Kind:
    """One model in one form, for several numbers of sequences."""

    model: Model
    quantization: Quantization
    batches: tuple[int, ...]
    cache: torch.dtype = torch.bfloat16

    def name(self, batch: int) -> str:
        """Of the case."""
        cache = ", fp8 cache" if self.cache == FP8 else ""
        return f"{self.model.name} {self.quantization}{cache} x {batch}"


def steps(bench: Bench) -> Iterator[Case]:
    """Those with a target."""
    sizes = bench.sizes
    yield from _cases(bench, [Kind(model, "none", sizes.step_batches) for model in sizes.models])
    yield from _cases(bench, [Kind(sizes.models[-1], "int4", sizes.step_batches[:1])])


def more_steps(bench: Bench) -> Iterator[Case]:
    """What else quantisation and an fp8 cache give."""
    models, batches = bench.sizes.models, bench.sizes.step_batches
    yield from _cases(bench, [Kind(models[-1], "fp8", batches, FP8), Kind(models[-1], "int8", batches[:1])])
    yield from _cases(bench, [Kind(model, "int4", batches, FP8) for model in models])
    yield from _cases(bench, [Kind(models[0], "none", batches, FP8)])


def _cases(bench: Bench, kinds: list[Kind]) -> Iterator[Case]:
    """Weights are made once for all batches, and are gone before the next are made."""
    for kind in kinds:
        weights = random_weights(
            backend, kind.model, _num_blocks(bench) * bench.sizes.block_size, torch.bfloat16, bench.device,
            kind.quantization,
        )  # fmt: skip
        for batch in kind.batches:
            yield Case(kind.name(batch), partial(measure, bench, kind, weights, batch))
        del weights


def _num_blocks(bench: Bench) -> int:
    return -(-bench.sizes.step_context // bench.sizes.block_size) + _SPARE_BLOCKS


def measure(bench: Bench, kind: Kind, weights: Weights, batch: int) -> Row:
    """A step of that many sequences."""
    context = bench.sizes.step_context
    pools = pools_of(bench, kind, batch)
    buffers = Buffers(batch, _num_blocks(bench), bench.device)
    step = DecodeStep(weights, pools, buffers, batch)
    replay: Call = partial(step, truncates=False)
    if bench.is_gpu:
        replay = Graph(step, truncates=False).replay
    buffers.global_table_BP[:], buffers.local_table_BP[:] = (
        torch.randperm(len(pools[0].keys), device=bench.device).view(batch, -1) for _ in range(2)
    )
    buffers.token_ids_B.random_(kind.model.vocab_size)
    buffers.choices.temperature.fill_(1.0)

    def again() -> None:
        buffers.lengths_B.fill_(context)
        buffers.choices.position.fill_(context)

    seconds = bench.clock.replay_seconds(replay, again)
    distinct = len({pool.keys.data_ptr() for pool in pools})
    figures = _figures(bench, kind, batch, seconds) | {"pools": distinct}
    return Row(kind.name(batch), seconds, figures, _target(kind, batch))


def pools_of(bench: Bench, kind: Kind, batch: int) -> list[KeysValues]:
    """Of each layer, as far as there is memory; then layers share them, each far larger than a cache."""
    model, num_blocks = kind.model, batch * _num_blocks(bench)
    each = 2 * num_blocks * bench.sizes.block_size * model.num_groups * model.head_dim * kind.cache.itemsize
    distinct = max(1, min(model.num_layers, int((bench.free_bytes - _KEPT_BYTES) // each)))
    made = [
        random_pool(model, num_blocks, bench.sizes.block_size, kind.cache, bench.device, layer)
        for layer in range(distinct)
    ]
    return [made[layer % distinct] for layer in range(model.num_layers)]


def _figures(bench: Bench, kind: Kind, batch: int, seconds: float) -> dict[str, float]:
    step = Step(kind.model, kind.quantization, batch, bench.sizes.step_context, kind.cache.itemsize)
    figures = {
        "tokens_per_s": batch / seconds,
        "of_roofline": step.floor_s(bench.bytes_per_s, bench.flops_per_s) / seconds,
        "of_datasheet_roofline": step.floor_s(*bench.datasheet) / seconds,
    }
    plain = bench.report.seconds(STEP, Kind(kind.model, "none", ()).name(batch))
    if not math.isnan(plain):
        figures["x_faster_than_bf16"] = plain / seconds
    return figures


def _target(kind: Kind, batch: int) -> Target | None:
    """Of plain weights, and of int4 ones for a single sequence of the largest model."""
    if kind.cache != torch.bfloat16:
        return None
    match kind.model.name, kind.quantization, batch:
        case name, "none", 1:
            return Target("of_roofline", _AT_LEAST[name])
        case _, "none", _:
            return Target("of_roofline", _LARGE_AT_LEAST)
        case "27b", "int4", 1:
            return Target("x_faster_than_bf16", _INT4_AT_LEAST)
    return None
