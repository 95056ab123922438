"""Paged attention of the native backend beside the reference and torch's own without a cap, as shares of the peaks.

    python tests/bench/cpu_attention.py [--threads 2] [--dtype bfloat16] [--width 128] [--budget-s 1.0]

Gemma 2's constants: soft-cap 50, heads in pairs on a KV head, blocks of 16 positions in random order. Decode counts the
bytes of the keys and values that are seen, which rotate over more memory than the caches hold; prefill counts four
operations per query, seen key and dimension. Torch's own attention reads dense keys and has no cap: it is there for
scale alone. The ways take turns, and each figure is the best of its calls.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.cpu_linear import Peaks, measure_peaks

from gemline_kernels import reference
from gemline_kernels.backend import Backend
from gemline_kernels.native import NativeBackend

HEADS, GROUPS, BLOCK_SIZE, CAP = 8, 4, 16, 50.0
DECODE = [(1, 512), (1, 2048), (2, 2048), (2, 8192), (8, 512), (32, 512), (32, 2048)]  # sequences, context
PREFILL = [(512, None), (1536, None), (1536, 512), (4096, None)]  # tokens, window
ROTATE_BYTES = 2e8
Attend = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Sequences of the same length, the last `num_queries` positions of each being asked for."""

    num_sequences: int
    num_queries: int
    context: int
    window: int | None
    width: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Keys and values that the last query of each sequence sees."""
        seen = min(self.context, self.window or self.context)
        return 2 * self.num_sequences * seen * GROUPS * self.width * self.dtype.itemsize

    @property
    def num_operations(self) -> int:
        first = self.context - self.num_queries
        seen = sum(min(position + 1, self.window or position + 1) for position in range(first, self.context))
        return 4 * self.num_sequences * seen * HEADS * self.width


def paged(case: Case, backend: Backend) -> Attend:
    num_pages = case.context // BLOCK_SIZE
    num_blocks = num_pages * case.num_sequences
    num_pools = 1 if case.num_queries > 1 else 1 + int(ROTATE_BYTES / case.num_bytes)
    pools = [torch.randn(2, num_blocks, BLOCK_SIZE, GROUPS, case.width).to(case.dtype) for _ in range(num_pools)]
    cycle = itertools.cycle(pools)
    table_BP = torch.randperm(num_blocks).view(case.num_sequences, num_pages)
    query_THK = (4 * torch.randn(case.num_sequences * case.num_queries, HEADS, case.width)).to(case.dtype)
    query_start = torch.arange(case.num_sequences + 1) * case.num_queries
    context_len = torch.full((case.num_sequences,), case.context)

    def attend() -> object:
        keys, values = next(cycle)
        return backend.paged_attention(
            query_THK,
            keys,
            values,
            table_BP,
            query_start,
            context_len,
            window=case.window,
            scale=case.width**-0.5,
            cap=CAP,
        )

    return attend


def dense(case: Case) -> Attend:
    """Torch's own, without cap and window, causal where there is more than one query."""
    query, keys, values = (
        torch.randn(case.num_sequences, heads, length, case.width).to(case.dtype)
        for heads, length in ((HEADS, case.num_queries), (GROUPS, case.context), (GROUPS, case.context))
    )
    is_causal = case.num_queries > 1
    return lambda: functional.scaled_dot_product_attention(query, keys, values, is_causal=is_causal, enable_gqa=True)


def measure(case: Case, budget_s: float, peaks: Peaks) -> None:
    ways = {"native": paged(case, NativeBackend()), "reference": paged(case, reference), "torch, no cap": dense(case)}
    best = dict.fromkeys(ways, float("inf"))
    end = time.perf_counter() + budget_s * len(ways)
    for name in itertools.cycle(ways):
        start = time.perf_counter()
        if start > end and max(best.values()) < float("inf"):
            break
        ways[name]()
        best[name] = min(best[name], time.perf_counter() - start)
    kind = "prefill" if case.num_queries > 1 else "decode"
    print(f"{kind} {case.num_sequences} x {case.context}, window {case.window}, head width {case.width}, {case.dtype}")
    for name, seconds in best.items():
        read, done = case.num_bytes / seconds / 1e9, case.num_operations / seconds / 1e9
        share = f"{read:6.1f} GB/s ({read / peaks.bytes:4.0%} of reads)"
        if kind == "prefill":
            share = f"{done:6.1f} GFLOP/s ({done / peaks.fma:4.0%} of float32)"
        print(f"  {name:14} {seconds * 1e6:10.1f} us  {share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--budget-s", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    peaks, dtype = measure_peaks(options.budget_s), getattr(torch, options.dtype)
    print(f"{options.threads} threads; peaks: float32 {peaks.fma:.0f} GFLOP/s, reads {peaks.bytes:.1f} GB/s")
    for num_sequences, context in DECODE:
        measure(Case(num_sequences, 1, context, None, options.width, dtype), options.budget_s, peaks)
    for num_tokens, window in PREFILL:
        measure(Case(1, num_tokens, num_tokens, window, options.width, dtype), options.budget_s, peaks)


if __name__ == "__main__":
    main()
