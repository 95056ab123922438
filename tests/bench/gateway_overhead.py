"""What the gateway adds to a request: from its arrival until a worker has it, 32 streams at a time.

    python tests/bench/gateway_overhead.py [--concurrency 32] [--requests 640] [--tokens 64]

One worker on the bench checkpoint, whose engine has one core for itself; a key with limits of its tenant, project and
own. As one answer, of half to one and a half times --tokens, ends, the next request is sent, over HTTP (SSE), each on a
connection of its own. The times are the gateway's own metrics, so they begin when it has read a request's head. They
hold the key check, the limits in Redis, reading and checking the body, tokenization, routing and the way to the
worker's stream; waiting for a turn is told apart.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import checkpoint
from bench.token_cost import OPTIONS, CpuTimes, stream_http
from support.stack import Running, start_stack

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.connection import connect
from gemline.cluster.limits import Limits

RAMP_S = 4.0  # in which the first requests come
_BUCKET = re.compile(r'^gemline_gateway_(\w+)_seconds_bucket\{.*le="([^"]+)".*\} (\S+)$', re.MULTILINE)
_WIDE = Limits(requests_per_min=10**6, tokens_per_min=10**9, concurrent_requests=10**4)


async def limited_key(running: Running) -> str:
    """A key that three sets of limits hold for."""
    redis = connect(running.ready["redis_url"])
    try:
        store = AccessStore(redis, "bench")
        await store.put_tenant(TenantRecord("bench", limits=_WIDE), is_new=True)
        await store.put_project(ProjectRecord("bench", "project", limits=_WIDE), is_new=True)
        return (await store.create_key(KeyRecord("bench", "project", limits=_WIDE))).key
    finally:
        await redis.aclose()


def buckets(running: Running) -> dict[str, dict[float, float]]:
    """By metric: how many took no longer than so many seconds."""
    text = httpx.get(f"{running.ready['http']}/metrics").text
    found: dict[str, dict[float, float]] = {}
    for name, limit, count in _BUCKET.findall(text):
        found.setdefault(name, {})[float(limit)] = float(count)
    return found


def since(before: dict[float, float], after: dict[float, float]) -> dict[float, float]:
    return {limit: count - before.get(limit, 0.0) for limit, count in sorted(after.items())}


def quantile_ms(counts: dict[float, float], share: float) -> float:
    """Between two bounds of the histogram it is drawn straight."""
    wanted, low_s, num_low = share * counts[max(counts)], 0.0, 0.0
    for limit_s, number in counts.items():
        if number >= wanted:
            return (low_s + (limit_s - low_s) * (wanted - num_low) / max(number - num_low, 1)) * 1e3
        low_s, num_low = limit_s, number
    raise ValueError("no bound holds them all")


async def load(running: Running, options: argparse.Namespace) -> None:
    """So many at once, until all are answered."""
    numbers: Iterator[int] = iter(range(options.requests))

    async def one_after_the_other(offset_s: float) -> None:
        await asyncio.sleep(offset_s)
        for number in numbers:
            num_tokens = random.Random(number).randint(options.tokens // 2, 3 * options.tokens // 2)
            await stream_http(running, f"Story number {number} is", num_tokens)

    await asyncio.gather(
        *(one_after_the_other(RAMP_S * index / options.concurrency) for index in range(options.concurrency))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = ("--model", str(checkpoint.cached("bench")), "--quantization", "int8", "--dtype", "bfloat16")
        running = start_stack(Path(scratch), *OPTIONS, *model)
        try:
            running.ready["api_key"] = asyncio.run(limited_key(running))
            asyncio.run(load(running, argparse.Namespace(**{**vars(options), "requests": options.concurrency})))
            before, cpu, begun_s = buckets(running), CpuTimes.read(running), time.monotonic()
            asyncio.run(load(running, options))
            took_s, (gateway_s, _, _) = time.monotonic() - begun_s, CpuTimes.read(running).since(cpu)
            after = buckets(running)
        finally:
            running.stop()
    for name in ("time_to_worker", "queue_time", "time_to_first_token"):
        counts = since(before[name], after[name])
        shares = ", ".join(
            f"{counts[limit] / counts[max(counts)]:.1%} within {limit * 1e3:g} ms" for limit in (0.0025, 0.005, 0.01)
        )
        print(f"{name}: p50 {quantile_ms(counts, 0.5):.2f} ms, p99 {quantile_ms(counts, 0.99):.2f} ms; {shares}")
    print(f"{options.requests / took_s:.1f} requests/s; the gateway's CPU: {gateway_s / took_s:.0%} of a core")


if __name__ == "__main__":
    main()
