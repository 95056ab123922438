"""Products of a few rows with a layer's weights: waiting for the weights, as a share of the copy's bandwidth."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Protocol, get_args

import torch
from bench.gpu.bench import Bench, Case
from bench.gpu.plan import LINEARS
from bench.gpu.report import Row
from support.published import Model

from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import linear

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
PARTS = ("gate_up", "down", "qkv", "out")


class Packed(Protocol):
    @property
    def num_bytes(self) -> int: ...

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor: ...


def linears(bench: Bench) -> Iterator[Case]:
    """The largest weights first; packed once for all numbers of rows."""
    for model, part, quantization in product(reversed(bench.sizes.models[1:]), PARTS, QUANTIZATIONS):
        sets = packed_sets(bench, model, part, quantization)
        for num_rows in bench.sizes.linear_rows:
            name = f"{model.name} {part} {quantization} {num_rows}"
            yield Case(name, partial(measure, bench, name, sets, num_inputs_of(model, part), num_rows))
        del sets


def num_inputs_of(model: Model, part: str) -> int:
    """Columns of a weight."""
    return {"down": model.inner, "out": model.num_heads * model.head_dim}.get(part, model.width)


def packed_sets(bench: Bench, model: Model, part: str, quantization: Quantization) -> list[Packed]:
    """The same weight several times, so that no cache holds all."""
    num_inputs = num_inputs_of(model, part)

    def random(num_outputs: int) -> torch.Tensor:
        shape = (num_outputs, num_inputs)
        return torch.randn(shape, device=bench.device, dtype=torch.bfloat16).mul_(1 / math.sqrt(num_inputs))

    packed: Packed
    if part == "gate_up":
        packed = linear.gated(random(model.inner), random(model.inner), "gelu_pytorch_tanh", quantization)
    else:
        num_outputs = model.num_parts * model.head_dim if part == "qkv" else model.width
        packed = linear.linear(random(num_outputs), None, quantization)
    return [packed, *(copy.deepcopy(packed) for _ in range(bench.num_sets(packed.num_bytes) - 1))]


def measure(bench: Bench, name: str, sets: list[Packed], num_inputs: int, num_rows: int) -> Row:
    """One product."""
    x_TD = torch.randn(num_rows, num_inputs, device=bench.device, dtype=torch.bfloat16)
    seconds = bench.clock.seconds([partial(packed, x_TD) for packed in sets])
    rate = sets[0].num_bytes / seconds
    figures = {"GB_per_s": rate / 1e9, "of_copy": rate / bench.bytes_per_s}
    plain = bench.report.seconds(LINEARS, name.replace(f" {name.split()[2]} ", " none "))
    if not math.isnan(plain):
        figures["x_faster_than_bf16"] = plain / seconds
    return Row(name, seconds, figures)
