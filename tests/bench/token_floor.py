"""What a streamed token costs before any of our code: bare uvicorn and bare grpc.aio, paced as an engine is.

    python tests/bench/token_floor.py [--concurrency 32] [--tokens 256] [--steps-per-s 50] [--rounds 3]

A server process of its own wakes all its streams at every step, and each sends what the gateway would: an event of a
completion, or a GenerateStreamResponse. The clients are those of token_cost.py; its figure less this one is ours.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import grpc.aio
import uvicorn
import uvloop
from bench.token_cost import TICK_S, cpu_s

from gemline.v1 import inference_pb2 as pb

_EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef01234567","object":"text_completion","created":1700000000,"model":"gemma-2",'
    b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
_RESPONSE = pb.GenerateStreamResponse(request_id="req_0123456789abcdef01234567", text=" token")


class Steps:
    """Wakes whoever waits, all at once, so many times a second."""

    def __init__(self, per_s: float) -> None:
        self._period_s = 1 / per_s
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def next(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future


class Bare:
    def __init__(self, steps: Steps, num_tokens: int) -> None:
        self._steps = steps
        self._num_tokens = num_tokens

    async def grpc(self, request: Any, context: Any) -> Any:
        for _ in range(self._num_tokens):
            await self._steps.next()
            yield _RESPONSE

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self._num_tokens):
            await self._steps.next()
            await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve(num_tokens: int, steps_per_s: float) -> None:
    """Prints both ports, then serves until it is killed."""
    steps = Steps(steps_per_s)
    bare = Bare(steps, num_tokens)
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(
        bare.grpc, pb.GenerateStreamRequest.FromString, pb.GenerateStreamResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", {"Stream": method}),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"http": listener.getsockname()[1], "grpc": grpc_port}), flush=True)
    config = uvicorn.Config(
        bare.http, interface="asgi3", http="httptools", lifespan="off", log_config=None, access_log=False
    )
    await asyncio.gather(steps.run(), uvicorn.Server(config).serve([listener]))


async def read_http(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: bare\r\nconnection: close\r\n\r\n")
    answer = await reader.read(-1)
    assert answer.count(b"data: ") > 0, answer
    writer.close()


async def read_grpc(stream: Any) -> None:
    async for _ in stream(pb.GenerateStreamRequest()):
        pass


async def measure(process: "subprocess.Popen[str]", options: argparse.Namespace) -> None:
    assert process.stdout is not None
    ports, stat = json.loads(process.stdout.readline()), Path(f"/proc/{process.pid}/stat")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        stream = channel.unary_stream(
            "/Bare/Stream", pb.GenerateStreamRequest.SerializeToString, pb.GenerateStreamResponse.FromString
        )
        fronts: dict[str, Callable[[], Awaitable[None]]] = {
            "HTTP": lambda: read_http(ports["http"]),
            "gRPC": lambda: read_grpc(stream),
        }
        for name, one in fronts.items():
            costs_us = []
            for _ in range(options.rounds + 1):
                before_s = cpu_s(stat)
                await asyncio.gather(*(one() for _ in range(options.concurrency)))
                costs_us.append((cpu_s(stat) - before_s) / (options.concurrency * options.tokens) * 1e6)
            median_us = statistics.median(costs_us[1:])  # the first one warms up
            print(f"{name}: {median_us:.1f} us of CPU per token, a tick of /proc being {TICK_S * 1e3:g} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps-per-s", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.tokens, options.steps_per_s))
        return
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        asyncio.run(measure(process, options))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
