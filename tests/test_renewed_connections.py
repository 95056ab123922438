"""Channels that are kept: when their connection breaks after a renewal, the next one is made with the new certificate.

gRPC itself would connect again with the one that the channel was opened with, and be refused for ever.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.certificates import Authority, renew
from support.eventually import eventually
from support.in_process import MODEL
from support.link import Link

from gemline.cluster.connection import connect
from gemline.cluster.records import Role, WorkerRecord
from gemline.cluster.workers import WorkersView
from gemline.decode.prefill_client import PrefillClient
from gemline.errors import Unavailable
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.host import HostSettings, WorkerHost
from gemline.internal.v1.prefill_pb2 import PrefillRequest
from gemline.internal.v1.tokenization_pb2 import EncodeRequest
from gemline.rpc.internal_tls import InternalTls
from gemline.rpc.options import OpenChannel
from gemline.telemetry import off
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker


class Stage(NamedTuple):
    """A worker behind a link."""

    record: WorkerRecord
    view: WorkersView
    open_channel: OpenChannel
    link: Link
    authority: Authority
    tls: InternalTls

    def renew_and_break(self) -> None:
        """Both ends get certificates of a new CA, and every connection is reset."""
        renew(self.tls._files, self.authority.issue("second"))
        self.link.cut()
        self.link.forward()


@pytest.fixture
async def stage(redis_url: str, tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[Stage]:
    files = Authority(tmp_path, "ours").issue("all")._replace(ca=tmp_path / "trusted.pem")
    renew(files, Authority(tmp_path, "first").issue("first"))
    worker = TokenizationWorker(TokenizationOptions(tiny_checkpoint, MODEL))
    settings = HostSettings(redis_url, metrics_port=None, advertise="127.0.0.2", internal_tls=files)
    host, redis = WorkerHost(worker, settings, off()), connect(redis_url)
    record, view, tls = await host.start(), WorkersView(redis), InternalTls(files)
    await view.start()
    await eventually(lambda: len(view.workers(Role.TOKENIZATION)) == 1)
    port = record.address.rpartition(":")[2]
    with Link(f"127.0.0.1:{port}", listen=f"127.0.0.2:{port}") as link:
        yield Stage(record, view, tls.open_channel, link, Authority(tmp_path, "next"), tls)
    await view.stop()
    await host.stop()
    await redis.aclose()


async def test_of_a_gateway_to_a_tokenization_worker(stage: Stage) -> None:
    workers = TokenizationWorkers(stage.view, stage.open_channel)

    async def encoded() -> int:
        request = EncodeRequest(epoch=stage.record.epoch, text="Hello there")
        return len((await workers.call(stage.record.model, lambda stub, _: stub.Encode(request, timeout=5))).token_ids)

    num_tokens = await encoded()
    stage.renew_and_break()
    assert await encoded() == num_tokens > 0
    await workers.stop()


async def test_of_a_decode_worker_to_a_prefill_worker(stage: Stage) -> None:
    client = PrefillClient(lambda: (stage.record,), stage.record.model, stage.open_channel, rest_s=0)

    async def connects() -> bool:
        try:
            async with client.call(stage.record, PrefillRequest(), ""):
                return True
        except Unavailable:
            return False

    assert await connects()
    stage.renew_and_break()
    assert [await connects() for _ in range(3)][-1]
    await client.close()
