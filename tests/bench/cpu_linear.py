"""Linears of the CPU backends beside torch's own, as shares of what the machine can do.

    python tests/bench/cpu_linear.py [--shapes bench|2b|NxK ...] [--rows 1 8 ...] [--kinds bf16 int8 ...]
                                     [--threads 2] [--budget-s 0.5] [--rotate-mb 200]

Weights rotate over more memory than the caches hold. The kinds take turns, and each figure is the best of its calls:
on a shared machine the worst says something about the neighbours only. GB/s counts the packed weight once a call, G/s
two operations per weight and row.
"""

import argparse
import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from gemline_kernels import onednn, quantize
from gemline_kernels.backend import Quantization
from gemline_kernels.cpu import linear
from gemline_kernels.cpu.native import library

SHAPES = {
    "bench": [(2048, 1024), (1024, 1024), (12288, 1024), (1024, 6144), (32000, 1024)],
    "2b": [(4096, 2304), (2304, 2048), (18432, 2304), (2304, 9216), (256000, 2304)],
}
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Peaks:
    """Billions per second: float32 operations, those on bfloat16 weights, int8 operations, bytes read from memory."""

    fma: float
    bf16: float  # as fma where the CPU does not multiply bfloat16 itself
    vnni: float
    bytes: float


def best_s(call: Callable[[], object], budget_s: float) -> float:
    best, end = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def measure_peaks(budget_s: float) -> Peaks:
    native, threads, rounds = library(), torch.get_num_threads(), 20_000
    memory = torch.zeros(2**29, dtype=torch.uint8)
    starts = itertools.cycle(range(0, memory.nbytes, 2**26))

    def read() -> None:
        address = ctypes.c_void_p(memory.data_ptr() + next(starts))
        native.gemline_read_bytes(address, ctypes.c_int64(2**26))

    def rate(name: str, per_round: int) -> float:
        function = getattr(native, name)
        return rounds * per_round * threads / best_s(lambda: function(ctypes.c_int64(rounds)), budget_s) / 1e9

    fma = rate("gemline_fma_rounds", 512)
    bf16 = rate("gemline_bf16_rounds", 1024) if hasattr(native, "gemline_bf16_rounds") else fma
    return Peaks(fma, bf16, rate("gemline_vnni_rounds", 2048), 2**26 / best_s(read, budget_s) / 1e9)


@dataclass(frozen=True)
class Kind:
    """A way to multiply: from a bfloat16 weight to its product, the bits a weight takes, whether it counts as int8."""

    make: Callable[[torch.Tensor], Product]
    bits: float
    is_int: bool = False


def native(quantization: Quantization) -> Callable[[torch.Tensor], Product]:
    return lambda weight: linear.linear(weight, None, quantization)


def gated(quantization: Quantization) -> Callable[[torch.Tensor], Product]:
    """The same number of weights as a gated pair."""

    def make(weight: torch.Tensor) -> Product:
        gate, up = weight.chunk(2)
        return linear.gated(gate, up, "gelu_pytorch_tanh", quantization)

    return make


def prepacked(dtype: torch.dtype) -> Callable[[torch.Tensor], Product]:
    def make(weight: torch.Tensor) -> Product:
        packed = onednn._Prepacked(weight.to(dtype))
        return lambda x: packed(x.to(dtype))

    return make


def plain(weight: torch.Tensor) -> Product:
    return lambda x: functional.linear(x, weight)


def qlinear(weight: torch.Tensor) -> Product:
    return onednn._Int8(quantize.quantize_int8(weight), 127)


KINDS = {
    "bf16": Kind(native("none"), 16),
    "bf16-gated": Kind(gated("none"), 16),
    "torch-bf16": Kind(plain, 16),
    "onednn-bf16": Kind(prepacked(torch.bfloat16), 16),
    "onednn-fp32": Kind(prepacked(torch.float32), 32),
    "portable": Kind(lambda weight: onednn.linear(weight, None, "none"), 16),
    "int8": Kind(native("int8"), 8, is_int=True),
    "int8-gated": Kind(gated("int8"), 8, is_int=True),
    "qlinear": Kind(qlinear, 8, is_int=True),
    "int4": Kind(native("int4"), 4.125, is_int=True),
    "int4-gated": Kind(gated("int4"), 4.125, is_int=True),
}


def rotating(kind: Kind, num_outputs: int, num_inputs: int, rotate_bytes: float) -> Iterator[Product]:
    count = 1 + int(rotate_bytes / (num_outputs * num_inputs * kind.bits / 8))
    weight = torch.randn(num_outputs, num_inputs).mul_(0.02).bfloat16()
    return itertools.cycle([kind.make(weight) for _ in range(count)])


def compare(shape: tuple[int, int], options: argparse.Namespace, peaks: Peaks) -> None:
    num_outputs, num_inputs = shape
    products = {name: rotating(KINDS[name], *shape, options.rotate_mb * 1e6) for name in options.kinds}
    for num_rows in options.rows:
        x = torch.randn(num_rows, num_inputs).bfloat16()
        best = dict.fromkeys(products, float("inf"))
        end = time.perf_counter() + options.budget_s * len(products)
        while time.perf_counter() < end:
            for name, product in products.items():
                multiply = next(product)
                start = time.perf_counter()
                multiply(x)
                best[name] = min(best[name], time.perf_counter() - start)
        print(f"{num_outputs} x {num_inputs}, {num_rows} rows")
        for name, seconds in best.items():
            kind, weights = KINDS[name], num_outputs * num_inputs
            read, done = weights * kind.bits / 8 / seconds / 1e9, 2 * num_rows * weights / seconds / 1e9
            peak = peaks.vnni if kind.is_int else peaks.bf16 if kind.bits == 16 else peaks.fma
            shares = f"{read:6.1f} GB/s ({read / peaks.bytes:4.0%})  {done:7.1f} G/s ({done / peak:4.0%})"
            print(f"  {name:12} {seconds * 1e6:10.1f} us  {shares}", flush=True)


def parse_shapes(names: list[str]) -> Iterator[tuple[int, int]]:
    for name in names:
        if name in SHAPES:
            yield from SHAPES[name]
        else:
            num_outputs, _, num_inputs = name.partition("x")
            yield int(num_outputs), int(num_inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["bench"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget-s", type=float, default=0.5)
    parser.add_argument("--rotate-mb", type=float, default=200.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    peaks = measure_peaks(2.0)
    print(
        f"torch {torch.__version__}, {options.threads} threads; peaks: float32 {peaks.fma:.0f} G/s,"
        f" int8 {peaks.vnni:.0f} G/s, reads {peaks.bytes:.1f} GB/s"
    )
    for shape in parse_shapes(options.shapes):
        compare(shape, options, peaks)


if __name__ == "__main__":
    main()
