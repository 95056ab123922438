"""A light tenant's first tokens, alone and beside a tenant that floods: does the flood wait for itself?

    python tests/bench/fairness.py [--quantization int8] [--flood 32] [--requests 40]

One worker on the bench checkpoint. The light tenant asks one short question after the other; the flood keeps so many
longer requests open at once. Printed are the light tenant's times to the first token, and what each got.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import checkpoint
from bench.cases import VOCAB_SIZE, client
from support.stack import Running, start_stack

from gemline.bench.measure import Record, percentile
from gemline.bench.openai_stream import Server
from gemline.bench.workloads import make, plan
from gemline.cluster.access import KeyRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.connection import connect

PAUSE_S = 0.1  # between two questions, at least


async def keys(running: Running, tenants: Sequence[str]) -> list[str]:
    """A new key for each."""
    redis = connect(running.ready["redis_url"])
    try:
        store = AccessStore(redis, "bench")
        return [(await store.create_key(KeyRecord(tenant))).key for tenant in tenants]
    finally:
        await redis.aclose()


async def light(server: Server, num_requests: int, seed: int) -> list[float]:
    """Times to the first token, ms, in order of size."""
    asks = make(plan("random", "48-64", num_requests=num_requests, vocab_size=VOCAB_SIZE, seed=seed))
    records: list[Record] = []
    for (ask,) in asks:
        records.append((await server.ask((), ask)).record)
        await asyncio.sleep(PAUSE_S * random.Random(len(records)).uniform(1, 3))
    failed = [record.error for record in records if record.error]
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {failed[0]}")
    return sorted(record.ttft_s * 1e3 for record in records)


async def flood(server: Server, num_at_once: int, done: list[Record]) -> None:
    """Until it is cancelled."""

    async def one(number: int) -> None:
        asks = make(plan("random", "128-256", num_requests=500, vocab_size=VOCAB_SIZE, seed=1000 + number))
        for (ask,) in asks:
            done.append((await server.ask((), ask)).record)

    await asyncio.gather(*map(one, range(num_at_once)))


def told(name: str, times_ms: list[float]) -> str:
    """One line."""
    p50, p95 = (percentile(times_ms, share) for share in (50, 95))
    return f"light tenant, {name}: TTFT p50 {p50:.0f} ms, p95 {p95:.0f} ms"


async def measure(running: Running, options: argparse.Namespace) -> None:
    light_key, flood_key = await keys(running, ("light", "flood"))
    url = running.ready["http"]
    of = {key: client(url, key) for key in (light_key, flood_key)}
    small, large = (
        Server(of[key].origin, key, running.model, "completions", num_output_tokens=num, ignore_eos=True)
        for key, num in ((light_key, 8), (flood_key, 64))
    )
    await light(small, 5, 1)
    alone = await light(small, options.requests, 2)
    done: list[Record] = []
    flooding = asyncio.create_task(flood(large, options.flood, done))
    await asyncio.sleep(10)
    beside = await light(small, options.requests, 3)
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flooding
    print(told("alone", alone))
    print(told(f"beside {options.flood} requests at once", beside))
    print(f"p95 {percentile(beside, 95) / percentile(alone, 95):.2f}x; the flood had {len(done)} answers meanwhile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=["none", "int8", "int4"], default="int8")
    parser.add_argument("--flood", type=int, default=32)
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    kind = ("--model", str(checkpoint.cached("bench")), "--quantization", options.quantization, "--dtype", "bfloat16")
    with tempfile.TemporaryDirectory() as scratch:
        size = ("--runner", "process", "--topology", "colocated", "--kv-blocks", "2048", "--first-prompt", "")
        running = start_stack(Path(scratch), *size, *kind)
        try:
            asyncio.run(measure(running, options))
        finally:
            running.stop()


if __name__ == "__main__":
    main()
