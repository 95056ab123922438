"""Looks for better constants of the kernels. Each setting is compiled by one of several processes first, then timed."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import product
from typing import Protocol

import torch
from bench.gpu.attention import FP8, Shape, decode_figures, inputs, prefill_figures
from bench.gpu.bench import Bench, Case, bench_on
from bench.gpu.clock import Call, GpuClock
from bench.gpu.linears import num_inputs_of, packed_sets
from bench.gpu.report import Report, Row
from bench.gpu.settings import Decode, Prefill, Product, Setting, in_force, words
from support.device import DEVICE
from support.published import Model

from gemline_kernels.backend import Quantization

_BF16 = torch.bfloat16
_BUDGET_S = 0.03  # of a setting
_COMPILING_S = 60.0  # of all settings for one subject
Make = Callable[[], list[Call]]


class Subject(Protocol):
    """What settings are tried on."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def num_processes(self) -> int:
        """That may compile for it at a time: each takes some of the device's memory."""

    def prepared(self, bench: Bench, *, is_shared: bool) -> Make:
        """Makes the calls under a setting; `is_shared`: to be compiled only, in little memory."""

    def figures(self, bench: Bench, seconds: float) -> dict[str, float]: ...


@dataclass(frozen=True)
class Decoding:
    """Planned anew for each setting, over the same pools."""

    shape: Shape
    num_processes: int = 10

    @property
    def name(self) -> str:
        return self.shape.name

    def prepared(self, bench: Bench, *, is_shared: bool) -> Make:
        number = 1 if is_shared else bench.num_sets(self.shape.num_bytes)
        sets = [inputs(bench, self.shape, seed, is_shared=is_shared) for seed in range(number)]

        def make() -> list[Call]:
            plan = sets[0].plan()
            return [partial(one.decode, plan) for one in sets]

        return make

    def figures(self, bench: Bench, seconds: float) -> dict[str, float]:
        return decode_figures(bench, self.shape, seconds)


@dataclass(frozen=True)
class Prompts:
    """Cut into tiles anew for each setting."""

    shape: Shape
    num_processes: int = 10

    @property
    def name(self) -> str:
        return self.shape.name

    def prepared(self, bench: Bench, *, is_shared: bool) -> Make:
        return lambda: [inputs(bench, self.shape, is_shared=is_shared).prefill]

    def figures(self, bench: Bench, seconds: float) -> dict[str, float]:
        return prefill_figures(bench, self.shape, seconds)


@dataclass(frozen=True)
class Weight:
    """A product of a few rows."""

    model: Model
    part: str
    quantization: Quantization
    num_rows: int
    num_processes: int = 4

    @property
    def name(self) -> str:
        return f"{self.model.name} {self.part} {self.quantization} {self.num_rows}"

    def prepared(self, bench: Bench, *, is_shared: bool) -> Make:
        sets = packed_sets(bench, self.model, self.part, self.quantization)[: 1 if is_shared else None]
        shape = (self.num_rows, num_inputs_of(self.model, self.part))
        x_TD = torch.randn(shape, device=bench.device, dtype=_BF16)
        return lambda: [partial(packed, x_TD) for packed in sets]

    def figures(self, bench: Bench, seconds: float) -> dict[str, float]:
        return {}


def decode(bench: Bench) -> Iterator[Case]:
    """Large batches, then one long sequence."""
    small, large = bench.sizes.models[0], bench.sizes.models[-1]
    batch, longest = max(bench.sizes.batches), max(bench.sizes.contexts)
    shapes = [
        Shape(model, batch, 1, bench.sizes.contexts[0], None, stored)
        for stored, model in product((_BF16, FP8), (small, large))
    ]
    shapes += [Shape(model, 1, 1, longest, None, _BF16) for model in (small, large)]
    settings = [Decode(*each) for each in product((32, 64, 16), (3, 4, 2, 5), (4, 2, 8), (4, 8, 16, 2, 3, 6, 12))]
    for shape in shapes:
        yield from _sweep(bench, Decoding(shape), settings)


def prefill(bench: Bench) -> Iterator[Case]:
    """A long prompt, and many shorter ones."""
    settings = [Prefill(*each) for each in product((128, 64), (32, 64, 16), (2, 3, 1, 4), (8, 4))]
    for (number, length), model in product(bench.sizes.prompts[:2], (bench.sizes.models[0], bench.sizes.models[-1])):
        yield from _sweep(bench, Prompts(Shape(model, number, length, length, None, _BF16)), settings)


def linears(bench: Bench) -> Iterator[Case]:
    """The largest weights of the largest model."""
    settings = [Product(*each) for each in product((32, 64, 128), (128, 256), (4, 3, 6), (4, 8), (4, 2, 8))]
    rows = bench.sizes.linear_rows
    quantizations: tuple[Quantization, ...] = ("int4", "int8", "fp8")
    for num_rows, part, quantization in product((rows[0], rows[-1]), ("gate_up", "down"), quantizations):
        yield from _sweep(bench, Weight(bench.sizes.models[-1], part, quantization, num_rows), settings)


def _sweep(bench: Bench, subject: Subject, settings: Sequence[Setting]) -> Iterator[Case]:
    """What is there now, then every setting; two of them where nothing is timed."""
    make = subject.prepared(bench, is_shared=False)
    yield Case(f"{subject.name} | as it is", partial(_measure, bench, subject, make, None))
    if bench.is_gpu:
        bench = replace(bench, clock=GpuClock(_BUDGET_S))
        _compile_all(subject, settings)
    else:
        settings = settings[:: len(settings) - 1]
    for setting in settings:
        yield Case(f"{subject.name} | {words(setting)}", partial(_measure, bench, subject, make, setting))


def _measure(bench: Bench, subject: Subject, make: Make, setting: Setting | None) -> Row:
    with in_force(setting):
        seconds = bench.clock.seconds(make())
    name = f"{subject.name} | {'as it is' if setting is None else words(setting)}"
    return Row(name, seconds, subject.figures(bench, seconds))


def _compile_all(subject: Subject, settings: Sequence[Setting]) -> None:
    """Into Triton's cache on disk. What fails here fails again where it is reported."""
    workers = _workers(min(subject.num_processes, max(1, (os.cpu_count() or 1) - 2)))
    wait([workers.submit(compile_one, subject, setting) for setting in settings], timeout=_COMPILING_S)


@cache
def _workers(number: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def compile_one(subject: Subject, setting: Setting) -> None:
    """In a process of the pool."""
    with suppress(Exception), in_force(setting):
        for call in _prepared(subject)():
            call()
        torch.cuda.synchronize()


@lru_cache(maxsize=1)
def _prepared(subject: Subject) -> Make:
    bench = bench_on(DEVICE, Report([]))
    make = subject.prepared(bench, is_shared=True)
    bench.give_back()
    return make
