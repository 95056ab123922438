"""CPU that a streamed token costs outside the engine: in the gateway, and in the decode worker's event loop.

    python tests/bench/token_cost.py [--concurrency 32] [--tokens 256] [--rounds 3]

Starts `gemline up --runner process --topology colocated`, streams that many answers at once over HTTP (SSE) and over
gRPC, and reads CPU times from /proc. In the decode worker the busiest thread is the engine; all others are the stream.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.stack import Running, start_stack

from gemline.client import AsyncClient

# One engine thread: then the busiest thread of the decode worker is the engine, and no helper of it counts as stream.
OPTIONS = ("--runner", "process", "--topology", "colocated", "--threads", "1", "--first-prompt", "")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


@dataclass(frozen=True)
class CpuTimes:
    gateway_s: float
    decode_threads_s: dict[str, float]

    @classmethod
    def read(cls, running: Running) -> "CpuTimes":
        gateway, decode = running.pids("gateway")[0], running.pids("decode")[0]
        threads = {task.name: cpu_s(task / "stat") for task in Path(f"/proc/{decode}/task").iterdir()}
        return cls(cpu_s(Path(f"/proc/{gateway}/stat")), threads)

    def since(self, before: "CpuTimes") -> tuple[float, float, float]:
        """CPU seconds of the gateway, of the decode worker outside its engine, and of the engine."""
        spent = [time - before.decode_threads_s.get(thread, 0.0) for thread, time in self.decode_threads_s.items()]
        return self.gateway_s - before.gateway_s, sum(spent) - max(spent), max(spent)


async def stream_http(running: Running, prompt: str, num_tokens: int) -> int:
    """One streamed completion, read as cheaply as can be; the number of tokens."""
    url = urlsplit(running.base_url)
    body = json.dumps(
        {
            "model": running.model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 1,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = [
        "POST /v1/completions HTTP/1.1",
        f"host: {url.netloc}",
        f"authorization: Bearer {running.ready['api_key']}",
        "content-type: application/json",
        "connection: close",
        f"content-length: {len(body)}",
    ]
    writer.write("\r\n".join([*head, "", body]).encode())
    answer = (await reader.read(-1)).decode()
    writer.close()
    usage = next(line for line in reversed(answer.splitlines()) if '"completion_tokens"' in line)
    return int(json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"])


async def stream_grpc(running: Running, client: AsyncClient, prompt: str, num_tokens: int) -> int:
    request = client.generate_stream(prompt, model=running.model, max_tokens=num_tokens, ignore_eos=True)
    async with request as stream:
        async for _ in stream:
            pass
    return stream.usage.completion_tokens if stream.usage else 0


async def measure(
    running: Running, name: str, concurrency: int, rounds: int, one: Callable[[str], Awaitable[int]]
) -> None:
    costs: list[tuple[float, float]] = []
    for round_number in range(rounds + 1):
        before = CpuTimes.read(running)
        begun = asyncio.get_running_loop().time()
        counts = await asyncio.gather(*(one(f"Story number {number} is") for number in range(concurrency)))
        took_s = asyncio.get_running_loop().time() - begun
        gateway_s, stream_s, engine_s = CpuTimes.read(running).since(before)
        num_tokens = sum(counts)
        if round_number:  # the first one warms up
            costs.append((gateway_s / num_tokens * 1e6, stream_s / num_tokens * 1e6))
        print(
            f"{name}: {num_tokens} tokens in {took_s:.2f} s ({num_tokens / took_s:.0f}/s); CPU us per token: "
            f"gateway {gateway_s / num_tokens * 1e6:.1f}, decode stream {stream_s / num_tokens * 1e6:.1f}, "
            f"engine {engine_s / num_tokens * 1e6:.1f}"
        )
    gateway_us, stream_us = (statistics.median(column) for column in zip(*costs, strict=True))
    print(f"{name}: median of {rounds}: gateway + stream {gateway_us + stream_us:.1f} us of CPU per token\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        running = start_stack(Path(directory), *OPTIONS)
        try:
            await measure(
                running,
                "HTTP",
                options.concurrency,
                options.rounds,
                lambda prompt: stream_http(running, prompt, options.tokens),
            )
            async with AsyncClient(running.ready["grpc"], api_key=running.ready["api_key"]) as client:
                await measure(
                    running,
                    "gRPC",
                    options.concurrency,
                    options.rounds,
                    lambda prompt: stream_grpc(running, client, prompt, options.tokens),
                )
        finally:
            running.stop()


if __name__ == "__main__":
    asyncio.run(main())
