"""A worker's port with TLS between processes: whom it answers, and what it says of bad files before it loads."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from support.certificates import Authority
from support.in_process import MODEL

from gemline.cluster.records import WorkerRecord
from gemline.errors import ConfigurationError
from gemline.host import HostSettings, WorkerHost
from gemline.internal.v1.tokenization_pb2 import EncodeRequest
from gemline.internal.v1.tokenization_pb2_grpc import TokenizationStub
from gemline.rpc.internal_tls import NAME, InternalTls
from gemline.rpc.options import OpenChannel, open_channel
from gemline.rpc.tls_files import TlsFiles
from gemline.telemetry import off
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker


def host(redis_url: str, model_dir: Path, tls: TlsFiles) -> WorkerHost:
    worker = TokenizationWorker(TokenizationOptions(model_dir, MODEL))
    return WorkerHost(worker, HostSettings(redis_url, metrics_port=None, internal_tls=tls), off())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
async def record(redis_url: str, tiny_checkpoint: Path, authority: Authority) -> AsyncIterator[WorkerRecord]:
    worker = host(redis_url, tiny_checkpoint, authority.issue("worker"))
    yield await worker.start()
    await worker.stop()


async def test_only_certificates_of_ours_are_answered(record: WorkerRecord, authority: Authority) -> None:
    async def encode(opened: OpenChannel) -> int:
        async with opened(record.address) as channel:
            stub: Any = TokenizationStub(channel)
            return len((await stub.Encode(EncodeRequest(epoch=record.epoch, text="four"), timeout=5)).token_ids)

    assert await encode(InternalTls(authority.issue("caller")).open_channel) > 0
    pem = authority.issue("public", dns="api.example.com").read()
    credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
    renamed = (("grpc.ssl_target_name_override", NAME),)
    strangers: dict[grpc.StatusCode, OpenChannel] = {
        grpc.StatusCode.UNAVAILABLE: open_channel,
        grpc.StatusCode.PERMISSION_DENIED: lambda address: grpc.aio.secure_channel(address, credentials, renamed),
    }
    for status, opened in strangers.items():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await encode(opened)
        assert caught.value.code() is status


async def test_certificates_that_cannot_be_used_are_named_before_the_model_is_looked_for(
    redis_url: str, authority: Authority, tmp_path: Path
) -> None:
    files = authority.issue("worker")._replace(key=tmp_path / "none.key")
    with pytest.raises(ConfigurationError, match=r"none\.key cannot be read"):
        await host(redis_url, tmp_path / "no-model", files).start()
