"""A gateway over one real tokenization worker and one real decode worker, all in the test's own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from support.eventually import eventually

from gemline.cluster.access import KeyRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.connection import connect
from gemline.cluster.keys import ApiKeys
from gemline.cluster.limits import LimitStore
from gemline.cluster.public_prefixes import PublicPrefixes
from gemline.cluster.sessions import SessionStore
from gemline.cluster.workers import WorkersView
from gemline.decode.placement import PrefillMode
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.gateway.core import Gateway
from gemline.gateway.requests import Tenant
from gemline.gateway.settings import GatewaySettings
from gemline.host import HostSettings, Worker, WorkerHost
from gemline.telemetry import Telemetry, off
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker

MODEL = "tiny"
TENANT = Tenant("acme")


@dataclass(frozen=True)
class InProcess:
    """The decode worker prefills for itself, unless it was asked not to."""

    gateway: Gateway
    tokenization: WorkerHost
    decode: WorkerHost
    decode_worker: DecodeWorker
    settings: GatewaySettings
    api_key: str
    keys: ApiKeys
    store: SessionStore
    access: AccessStore

    async def key_of(self, tenant_id: str) -> str:
        """A new key of that tenant."""
        return (await self.access.create_key(KeyRecord(tenant_id))).key


@asynccontextmanager
async def in_process(
    redis_url: str,
    checkpoint: Path,
    telemetry: Telemetry | None = None,
    num_kv_blocks: int = 256,
    prefill: PrefillMode = "never",
) -> AsyncIterator[InProcess]:
    """Ready to generate; the gateway stops first."""
    engine = EngineOptions(num_kv_blocks=num_kv_blocks, num_threads=1)
    decode_worker = DecodeWorker(DecodeOptions(checkpoint, MODEL, engine, prefill))
    settings = GatewaySettings(redis_url=redis_url, connect_timeout_s=0.5, resume_timeout_s=0.5)
    redis = connect(redis_url)
    view, keys, store = WorkersView(redis), ApiKeys(redis, None), SessionStore(redis)
    limits = LimitStore(redis)
    gateway = Gateway(settings, view, keys, telemetry or off(), store, PublicPrefixes(redis), limits)
    tokenization = host(TokenizationWorker(TokenizationOptions(checkpoint, MODEL)), redis_url, telemetry)
    decode = host(decode_worker, redis_url, telemetry)
    try:
        await tokenization.start()
        await decode.start()
        await view.start()
        await gateway.start()
        await eventually(gateway.ready)
        access = AccessStore(redis, "test")
        api_key = (await access.create_key(KeyRecord(TENANT.tenant_id))).key
        yield InProcess(gateway, tokenization, decode, decode_worker, settings, api_key, keys, store, access)
    finally:
        await gateway.stop()
        await view.stop()
        await decode.stop()
        await tokenization.stop()
        await redis.aclose()


def host(worker: Worker, redis_url: str, telemetry: Telemetry | None = None) -> WorkerHost:
    """A worker's host without a metrics port."""
    return WorkerHost(worker, HostSettings(redis_url, metrics_port=None), telemetry or off())
