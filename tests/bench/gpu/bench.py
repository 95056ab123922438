"""What every section is given, and what it gives: cases, each measured by itself."""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from bench.gpu.clock import Clock, GpuClock, HostClock
from bench.gpu.machine import Datasheet, datasheet
from bench.gpu.report import Report, Row
from support.published import PUBLISHED, Model, shrunk


@dataclass(frozen=True)
class Sizes:
    """Of everything that is measured."""

    models: tuple[Model, ...] = PUBLISHED
    block_size: int = 64
    batches: tuple[int, ...] = (64, 1, 8)
    contexts: tuple[int, ...] = (4096, 8192, 1024)
    prompts: tuple[tuple[int, int], ...] = ((1, 8192), (8, 2048), (1, 2048), (2, 8192))  # how many, how long
    step_context: int = 4096
    step_batches: tuple[int, ...] = (1, 64)
    linear_rows: tuple[int, ...] = (1, 8, 64)
    sampled_rows: tuple[int, ...] = (32, 256)
    copied_bytes: int = 2**32
    product_size: int = 8192
    rotated_bytes: float = 2.5e8  # several times the cache of a GPU


def tiny() -> Sizes:
    """For an interpreter."""
    return Sizes(
        models=tuple(shrunk(model) for model in PUBLISHED[::2]),
        batches=(1, 2),
        contexts=(130,),
        prompts=((2, 100),),
        step_context=70,
        step_batches=(1, 2),
        linear_rows=(1, 17),
        sampled_rows=(2,),
        copied_bytes=2**16,
        product_size=64,
        rotated_bytes=1e4,
    )


@dataclass(frozen=True)
class Bench:
    """One device."""

    device: torch.device
    clock: Clock
    sizes: Sizes
    report: Report  # of what was measured before

    @property
    def is_gpu(self) -> bool:
        """Otherwise kernels are interpreted."""
        return self.device.type == "cuda"

    @property
    def bytes_per_s(self) -> float:
        """Of a large copy, read and written; NaN when it was not measured."""
        return self.report.figure("peaks", "copy", "bytes_per_s")

    @property
    def flops_per_s(self) -> float:
        """Of a large bfloat16 product."""
        return self.report.figure("peaks", "product", "flops_per_s")

    @cached_property
    def datasheet(self) -> Datasheet:
        """What the maker says."""
        name = torch.cuda.get_device_name(self.device) if self.is_gpu else "none"
        return datasheet(name) or Datasheet(math.nan, math.nan)

    @property
    def free_bytes(self) -> float:
        """Of the device's memory; more than enough where there is no GPU."""
        self.give_back()
        return float(torch.cuda.mem_get_info(self.device)[0]) if self.is_gpu else 1e15

    def give_back(self) -> None:
        """What nobody holds any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def num_sets(self, num_bytes: float) -> int:
        """How many sets of data of that size no cache holds."""
        return max(1, min(64, math.ceil(self.sizes.rotated_bytes / num_bytes)))


class Case(NamedTuple):
    """Something to be measured."""

    name: str
    measure: Callable[[], Row]


Section = Callable[[Bench], Iterator[Case]]


def bench_on(device: torch.device, report: Report) -> Bench:
    """Of the published sizes on a GPU; elsewhere of tiny ones, only to see that all can be run."""
    is_gpu = device.type == "cuda"
    return Bench(device, GpuClock() if is_gpu else HostClock(), Sizes() if is_gpu else tiny(), report)
