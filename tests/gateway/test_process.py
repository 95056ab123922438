"""The gateway as a process of its own: both ports, the ready file, and an orderly end on SIGTERM."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.eventually import eventually
from support.in_process import MODEL, InProcess

from gemline.errors import ConfigurationError, Unavailable
from gemline.gateway.process import GatewayProcess
from gemline.gateway.settings import GatewaySettings
from gemline.telemetry import off
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

SCRIPT = """
import sys
from pathlib import Path
from gemline.gateway.process import run_gateway
from gemline.gateway.settings import GatewaySettings
run_gateway(GatewaySettings(redis_url=sys.argv[1], ready_file=Path(sys.argv[2])))
"""


def ask(api_key: str, max_tokens: int) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": max_tokens, "ignore_eos": True}
    return {"json": body, "headers": {"authorization": f"Bearer {api_key}"}}


async def test_both_fronts_answer_and_the_ready_file_says_where(platform: InProcess, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    process = GatewayProcess(replace(platform.settings, ready_file=ready_file), off())
    addresses = await process.start()
    try:
        await eventually(ready_file.exists)
        assert json.loads(ready_file.read_text()) == {"http": addresses.http, "grpc": addresses.grpc}
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            assert (await http.get("/readyz")).status_code == 200
            answer = await http.post("/v1/completions", **ask(platform.api_key, 4))
            assert answer.json()["usage"]["completion_tokens"] == 4
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            stub: Any = InferenceStub(channel)
            key = (("authorization", f"Bearer {platform.api_key}"),)
            assert (await stub.ListModels(pb.ListModelsRequest(), metadata=key)).models[0].id == MODEL
            health: Any = health_pb2_grpc.HealthStub(channel)
            status = await health.Check(health_pb2.HealthCheckRequest())
            assert status.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await process.stop()


async def test_the_admin_api_has_a_port_and_a_key_of_its_own(
    platform: InProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready_file, admin_key = tmp_path / "ready.json", "ga_sixteen_and_more"
    settings = replace(platform.settings, ready_file=ready_file, admin_key=admin_key, admin_port=0)
    process = GatewayProcess(settings, off())
    addresses = await process.start()
    try:
        await eventually(ready_file.exists)
        assert json.loads(ready_file.read_text())["admin"] == addresses.admin
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {admin_key}"}) as operator:
            made = await operator.post(f"{addresses.admin}/admin/v1/tenants", json={"id": "new"})
            assert made.status_code == 201
            made = await operator.post(f"{addresses.admin}/admin/v1/tenants/new/keys")
            for path in ("/v1/models", "/admin/v1/tenants", "/docs"):  # it opens nothing on the public port
                assert (await operator.get(addresses.http + path)).status_code == 401
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {made.json()['key']}"}) as tenant:
            assert (await tenant.get(f"{addresses.http}/v1/models")).status_code == 200
            assert (await tenant.get(f"{addresses.admin}/admin/v1/tenants")).status_code == 401
            assert (await tenant.get(f"{addresses.http}/admin/v1/tenants")).status_code == 404
        assert admin_key not in caplog.text
        await process.drain()
        async with httpx.AsyncClient() as late:
            with pytest.raises(httpx.ConnectError):
                await late.get(f"{addresses.admin}/admin/v1/tenants")
    finally:
        await process.stop()


async def test_without_an_admin_key_there_is_no_admin_api(redis_url: str) -> None:
    process = GatewayProcess(GatewaySettings(redis_url=redis_url, admin_port=0), off())
    try:
        assert (await process.start()).admin == ""
    finally:
        await process.stop()


async def test_without_workers_it_listens_and_says_that_it_is_not_ready(redis_url: str, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    process = GatewayProcess(GatewaySettings(redis_url=redis_url, ready_file=ready_file), off())
    addresses = await process.start()
    try:
        async with httpx.AsyncClient(base_url=addresses.http) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/readyz")).status_code == 503
        assert not ready_file.exists()
    finally:
        await process.stop()


async def test_a_ready_file_that_cannot_be_written_does_not_end_the_watch_over_readiness(
    platform: InProcess, tmp_path: Path
) -> None:
    process = GatewayProcess(replace(platform.settings, ready_file=tmp_path / "nowhere" / "ready.json"), off())
    addresses = await process.start()
    try:
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = aiter(health.Watch(health_pb2.HealthCheckRequest()))
            seen = {(await anext(watch)).status}
            while health_pb2.HealthCheckResponse.SERVING not in seen:
                seen.add((await anext(watch)).status)
            await platform.tokenization.stop()
            async with asyncio.timeout(10):
                assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        await process.stop()


@pytest.mark.parametrize("port", ["http_port", "grpc_port", "admin_port"])
async def test_a_port_that_is_taken_is_named(redis_url: str, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = GatewaySettings(redis_url=redis_url, admin_key="sixteen_letters_", admin_port=0)
        settings = replace(settings, **{port: taken.getsockname()[1]})
        with pytest.raises(ConfigurationError, match=f"{port}: cannot listen on 127.0.0.1:"):
            await GatewayProcess(settings, off()).start()


async def test_a_file_of_keys_that_cannot_be_read_is_found_at_the_start(redis_url: str, tmp_path: Path) -> None:
    keys_file = tmp_path / "keys"
    keys_file.write_text("no colon here\n")
    with pytest.raises(ConfigurationError, match="keys_file"):
        await GatewayProcess(GatewaySettings(redis_url=redis_url, keys_file=keys_file), off()).start()


async def test_a_redis_that_is_away_is_named_at_the_start() -> None:
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:1 does not answer"):
        await GatewayProcess(GatewaySettings(redis_url="redis://127.0.0.1:1"), off()).start()


@pytest.fixture
async def child(platform: InProcess, tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway in a process of its own, ready, and its HTTP address."""
    ready_file = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, platform.settings.redis_url, str(ready_file), env=dict(os.environ)
    )
    try:
        await eventually(ready_file.exists, timeout_s=20)
        yield process, json.loads(ready_file.read_text())["http"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_lets_running_answers_end_and_takes_no_new_ones(
    child: tuple[asyncio.subprocess.Process, str], platform: InProcess
) -> None:
    process, url = child
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        running = [asyncio.create_task(http.post("/v1/completions", **ask(platform.api_key, 200))) for _ in range(4)]
        await eventually(lambda: sum(platform.decode_worker.load()) == 4)
        process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*running)
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [200] * 4
    assert await asyncio.wait_for(process.wait(), 10) == 0
    async with httpx.AsyncClient() as late:
        with pytest.raises(httpx.ConnectError):
            await late.get(f"{url}/healthz")


async def test_a_second_signal_ends_what_still_runs(
    child: tuple[asyncio.subprocess.Process, str], platform: InProcess
) -> None:
    process, url = child
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        running = [asyncio.create_task(http.post("/v1/completions", **ask(platform.api_key, 250))) for _ in range(16)]
        await eventually(lambda: sum(platform.decode_worker.load()) > 0)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 5)
        await asyncio.gather(*running, return_exceptions=True)
    await eventually(lambda: sum(platform.decode_worker.load()) == 0, timeout_s=2)


async def test_a_gateway_that_is_killed_leaves_nothing_running_on_the_worker(
    child: tuple[asyncio.subprocess.Process, str], platform: InProcess
) -> None:
    process, url = child
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        running = [asyncio.create_task(http.post("/v1/completions", **ask(platform.api_key, 250))) for _ in range(8)]
        await eventually(lambda: sum(platform.decode_worker.load()) == 8)
        process.kill()
        await eventually(lambda: sum(platform.decode_worker.load()) == 0, timeout_s=2)
        await asyncio.gather(*running, return_exceptions=True)
