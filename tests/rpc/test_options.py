import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gemline.rpc.health import Health
from gemline.rpc.options import channel_options, open_channel, server_options

SERVER = """
import asyncio, grpc.aio
from gemline.rpc.health import Health
from gemline.rpc.options import server_options
async def main():
    server = grpc.aio.server(options=server_options())
    health = Health(server, [])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def watch(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest())


async def test_a_taken_port_cannot_be_taken_again() -> None:
    first, second = grpc.aio.server(options=server_options()), grpc.aio.server(options=server_options())
    port = first.add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError):
        second.add_insecure_port(f"127.0.0.1:{port}")
    await first.stop(None)
    await second.stop(None)


async def test_a_frozen_peer_is_noticed_within_five_seconds() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:  # noqa: ASYNC220
        assert server.stdout is not None
        port = int(server.stdout.readline())
        async with open_channel(f"127.0.0.1:{port}") as channel:
            updates = watch(channel)
            await updates.read()
            os.kill(server.pid, signal.SIGSTOP)
            frozen_s = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(20):
                    await updates.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - frozen_s < 5
        server.kill()


@pytest.mark.slow
async def test_an_idle_stream_is_kept_alive_without_complaint() -> None:
    server = grpc.aio.server(options=server_options())
    Health(server, [])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        updates = watch(channel)
        await updates.read()
        with pytest.raises(TimeoutError):  # a server that finds the pings too many ends the stream at the fourth
            async with asyncio.timeout(9):
                await updates.read()
    await server.stop(None)


def test_every_option_is_a_number() -> None:
    for name, value in (*channel_options(), *server_options()):
        assert type(value) is int, name
