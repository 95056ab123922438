"""A gateway and its workers with TLS between them: the same answers, nothing in clear, renewed while all goes on."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import Authority, renew
from support.eventually import eventually
from support.in_process import MODEL, InProcess
from support.processes import ports
from support.workers import hosted, measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError
from gemline.gateway.process import GatewayProcess
from gemline.gateway.settings import GatewaySettings
from gemline.host import HostSettings, Worker, WorkerHost
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.rpc.tls_files import TlsFiles
from gemline.telemetry import Telemetry, off
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker
from gemline.transfer.transports import KvTransportSetting

KEY = "a-key-of-acme"
ENGINE = EngineOptions(num_kv_blocks=256, num_threads=1)
PROMPT = "Once upon a time there was a stream that nobody but its reader could read"
NUM_TOKENS = 48


def tokenization(checkpoint: Path) -> TokenizationWorker:
    return TokenizationWorker(TokenizationOptions(checkpoint, MODEL))


def decode(checkpoint: Path, transport: KvTransportSetting = "auto") -> DecodeWorker:
    return DecodeWorker(DecodeOptions(checkpoint, MODEL, ENGINE, "always", transport))


def prefill(checkpoint: Path, transport: KvTransportSetting = "auto") -> PrefillWorker:
    return PrefillWorker(PrefillOptions(checkpoint, MODEL, ENGINE, kv_transport=transport))


class Platform:
    """Workers that a test starts, and one gateway."""

    def __init__(self, redis_url: str, tls: TlsFiles | None, directory: Path) -> None:
        self._redis_url = redis_url
        self._tls = tls
        self._keys_file = directory / "keys"
        self._keys_file.write_text(f"acme:{KEY}\n")
        self.undo = AsyncExitStack()

    async def add(self, worker: Worker, telemetry: Telemetry | None = None, **files: TlsFiles) -> WorkerHost:
        """Started; of the platform's own files unless others are given."""
        settings = HostSettings(self._redis_url, metrics_port=None, internal_tls=files.get("tls", self._tls))
        host = WorkerHost(worker, settings, telemetry or off())
        await host.start()
        self.undo.push_async_callback(host.stop)
        return host

    async def open(self) -> httpx.AsyncClient:
        """A client of the gateway, once it is ready."""
        names = ("internal_tls_certificate", "internal_tls_key", "internal_tls_ca")
        files: dict[str, Any] = {} if self._tls is None else dict(zip(names, self._tls, strict=True))
        settings = GatewaySettings(redis_url=self._redis_url, keys_file=self._keys_file, **files)
        gateway = GatewayProcess(settings, off())
        addresses = await gateway.start()
        self.undo.push_async_callback(gateway.stop)
        client = httpx.AsyncClient(base_url=addresses.http, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        await self.undo.enter_async_context(client)
        async with asyncio.timeout(10):
            while True:
                if (await client.get("/readyz")).status_code == 200:
                    return client
                await asyncio.sleep(0.02)


@asynccontextmanager
async def platform_of(redis_url: str, tls: TlsFiles | None, directory: Path) -> AsyncIterator[Platform]:
    platform = Platform(redis_url, tls, directory)
    async with platform.undo:
        yield platform


def body(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True} | options


async def answer(client: httpx.AsyncClient) -> str:
    response = await client.post("/v1/completions", json=body())
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


@pytest.fixture
async def expected(platform: InProcess) -> str:
    """What one worker answers without TLS, by a gateway of its own."""
    settings = replace(platform.settings)
    process = GatewayProcess(settings, off())
    addresses = await process.start()
    headers = {"authorization": f"Bearer {platform.api_key}"}
    async with httpx.AsyncClient(base_url=addresses.http, headers=headers, timeout=30) as client:
        await eventually(lambda: process._gateway.ready())
        text = await answer(client)
    await process.stop()
    for host in (platform.decode, platform.tokenization):
        await host.stop()
    return text


@pytest.mark.parametrize("transport", ["auto", "grpc"])
async def test_a_split_platform_answers_the_same_with_tls_and_opens_no_port_for_keys_and_values(
    expected: str, redis_url: str, tiny_checkpoint: Path, tmp_path: Path, transport: KvTransportSetting
) -> None:
    measured = measuring()
    async with platform_of(redis_url, Authority(tmp_path, "ours").issue("all"), tmp_path) as platform:
        await platform.add(tokenization(tiny_checkpoint))
        before = ports(os.getpid())
        record = (await platform.add(prefill(tiny_checkpoint, transport))).record
        assert set(ports(os.getpid())) - set(before) == {int(record.address.rpartition(":")[2])}
        await platform.add(decode(tiny_checkpoint), measured)
        client = await platform.open()
        assert await answer(client) == expected
        await eventually(lambda: measure(measured, "gemline_prefills_total", where="remote") == 1)
        came_by = "shm" if transport == "auto" else "grpc"
        assert measure(measured, "gemline_kv_received_bytes_total", transport=came_by) > 0
    async with hosted(prefill(tiny_checkpoint), redis_url):
        assert len(set(ports(os.getpid())) - set(before)) == 2  # without TLS there is one for keys and values


@pytest.mark.parametrize("make", [prefill, decode])
@pytest.mark.parametrize("transport", ["socket", "nixl"])
async def test_a_transport_in_clear_is_refused_with_tls(
    redis_url: str, tiny_checkpoint: Path, tmp_path: Path, make: Callable[..., Worker], transport: KvTransportSetting
) -> None:
    async with platform_of(redis_url, Authority(tmp_path, "ours").issue("all"), tmp_path) as platform:
        with pytest.raises(ConfigurationError, match=f"kv_transport {transport} sends keys and values in clear"):
            await platform.add(make(tiny_checkpoint, transport))


async def test_after_a_renewal_new_workers_are_reached_and_the_connections_that_stand_are_kept(
    expected: str, redis_url: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By certificates of a new CA, so that a worker that comes later takes nobody who still has the old ones."""
    files = Authority(tmp_path, "ours").issue("all")._replace(ca=tmp_path / "trusted.pem")
    renew(files, Authority(tmp_path, "first").issue("first"))
    measured = measuring()
    async with platform_of(redis_url, files, tmp_path) as platform:
        await platform.add(tokenization(tiny_checkpoint))
        await platform.add(prefill(tiny_checkpoint))
        old = await platform.add(decode(tiny_checkpoint))
        client = await platform.open()
        assert await answer(client) == expected
        renew(files, Authority(tmp_path, "next").issue("second"))
        assert await answer(client) == expected
        await platform.add(decode(tiny_checkpoint), measured)
        await old.stop()
        assert await answer(client) == expected
        await eventually(lambda: measure(measured, "gemline_prefills_total", where="remote") == 1)


async def test_a_worker_of_another_ca_gets_no_request(redis_url: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours").issue("all"), Authority(tmp_path, "theirs").issue("stranger")
    async with platform_of(redis_url, ours, tmp_path) as platform:
        await platform.add(tokenization(tiny_checkpoint))
        good = await platform.add(decode(tiny_checkpoint))
        client = await platform.open()
        stranger = decode(tiny_checkpoint)
        await platform.add(stranger, tls=theirs)
        assert await answer(client)
        await good.stop()
        response = await client.post("/v1/completions", json=body())
        assert response.status_code == 503
        assert stranger.load() == (0, 0)
