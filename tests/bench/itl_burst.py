"""How much a burst of long prompts slows running streams down: p99 of their inter-token latency, quiet and beside it.

    python tests/bench/itl_burst.py [--shape bench] [--dtype bfloat16] [--quantization none] [--streams 4] [--burst 4]

One engine in its thread. Streams run alone for a while, then prompts arrive at once and are prefilled beside them, then
the streams run alone again; `--rounds` times. With --unpaced the same without pacing: steps as large as they may be.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.checkpoint import SHAPES, cached

from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.events import StepResult
from gemline.engine.loop import EngineThread
from gemline.engine.pacing import Load, Pacer
from gemline.engine.params import SamplingParams

STREAM_PROMPT = 64


class Unpaced(Pacer):
    def num_tokens(self, load: Load) -> int:
        return self._max_tokens


class Recorder:
    """When each sequence got its tokens."""

    def __init__(self) -> None:
        self.times_s: dict[int, list[float]] = {}
        self._awaited: set[int] = set()
        self._all_there = Event()

    def on_step(self, result: StepResult) -> None:
        now_s = time.perf_counter()
        assert not result.failures, result.failures
        for token in result.tokens:
            self.times_s.setdefault(token.seq_id, []).append(now_s)
            self._awaited.discard(token.seq_id)
        if not self._awaited:
            self._all_there.set()

    def expect(self, seq_ids: list[int]) -> Event:
        """Set when each of them has got a token from now on."""
        self._all_there.clear()
        self._awaited = set(seq_ids)
        return self._all_there

    def gaps_ms(self, seq_ids: list[int], start_s: float, stop_s: float) -> list[float]:
        """Between consecutive tokens, of the intervals that end between the two times."""
        return sorted(
            (after - before) * 1e3
            for seq_id in seq_ids
            for before, after in zip(self.times_s[seq_id], self.times_s[seq_id][1:], strict=False)
            if start_s <= after <= stop_s
        )


def request(seq_id: int, num_prompt: int, max_tokens: int, vocab_size: int) -> EngineRequest:
    token_ids = (
        2,
        *((7919 * (seq_id + 1) + 104_729 * place) % (vocab_size - 1000) + 1000 for place in range(num_prompt - 1)),
    )
    return EngineRequest(seq_id, token_ids, num_prompt, SamplingParams(max_tokens, temperature=0.0))


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def run_round(thread: EngineThread, recorder: Recorder, seq_ids: Iterator[int], options: argparse.Namespace) -> str:
    """Both percentiles quiet and during the burst, and how long that took to be prefilled."""
    vocab_size, context = SHAPES[options.shape].vocab_size, SHAPES[options.shape].max_position_embeddings
    streams = [next(seq_ids) for _ in range(options.streams)]
    prompts = [next(seq_ids) for _ in range(options.burst)]
    running = recorder.expect(streams)
    for seq_id in streams:
        thread.submit(request(seq_id, STREAM_PROMPT, context - STREAM_PROMPT, vocab_size))
    assert running.wait(120)
    time.sleep(options.quiet_s / 4)
    quiet_s = time.perf_counter()
    time.sleep(options.quiet_s)
    burst_s = time.perf_counter()
    prefilled = recorder.expect(prompts)
    for seq_id in prompts:
        thread.submit(request(seq_id, options.prompt, 1, vocab_size))
    assert prefilled.wait(600)
    calm_s = time.perf_counter()
    time.sleep(options.quiet_s)
    end_s = time.perf_counter()
    for seq_id in streams:
        thread.cancel(seq_id)
    quiet = recorder.gaps_ms(streams, quiet_s, burst_s) + recorder.gaps_ms(streams, calm_s + 1.0, end_s)
    beside = recorder.gaps_ms(streams, burst_s, calm_s)
    quiet_p50, quiet_p99 = (percentile(sorted(quiet), share) for share in (0.5, 0.99))
    beside_p50, beside_p99 = (percentile(beside, share) for share in (0.5, 0.99))
    return (
        f"ITL ms p50 / p99: quiet {quiet_p50:.1f} / {quiet_p99:.1f}, burst {beside_p50:.1f} / {beside_p99:.1f},"
        f" {len(beside)} intervals, p99 ratio {beside_p99 / quiet_p99:.2f};"
        f" burst in {calm_s - burst_s:.1f} s, {options.burst * options.prompt / (calm_s - burst_s):.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bench")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", choices=["none", "int8", "int4"], default="none")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--burst", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=1500)
    parser.add_argument("--quiet-s", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="all cores if not given")
    parser.add_argument("--unpaced", action="store_true")
    options = parser.parse_args()
    engine_options = EngineOptions(
        dtype=options.dtype,
        quantization=options.quantization,
        num_kv_blocks=2048,
        prefix_cache=False,
        num_threads=options.threads,
    )

    def load_engine() -> Engine:
        engine = Engine.load(options.directory or cached(options.shape), engine_options)
        if options.unpaced:
            engine._pacer = Unpaced(engine_options.max_batch_tokens)
        return engine

    recorder, seq_ids = Recorder(), count(1)
    thread = EngineThread(load_engine, recorder.on_step)
    thread.start()
    asyncio.run(thread.ready())
    load = f"{options.streams} streams, burst of {options.burst} x {options.prompt}"
    print(f"{options.shape}, {options.dtype}, quantization {options.quantization}, {load}")
    try:
        for _ in range(options.rounds):
            print(run_round(thread, recorder, seq_ids, options), flush=True)
    finally:
        thread.stop()


if __name__ == "__main__":
    main()
