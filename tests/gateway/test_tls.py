"""TLS on the public ports: served, renewed without a restart, refused where it is broken, mutual where asked for."""

import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from support.certificates import certificate
from support.in_process import InProcess

from gemline.errors import ConfigurationError
from gemline.gateway.grpc_server import PublicServer
from gemline.gateway.http import create_app
from gemline.gateway.http_server import HttpServer
from gemline.gateway.process import GatewayProcess
from gemline.gateway.settings import GatewaySettings
from gemline.gateway.tls import Certificates
from gemline.rpc.tls_files import TlsFiles
from gemline.telemetry import off
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

Served = Callable[..., Any]


@pytest.fixture
async def serve(platform: InProcess) -> AsyncIterator[Served]:
    """Both fronts with these files; gives their ports."""
    running: list[Any] = []

    async def start(tls: Certificates) -> tuple[str, str]:
        app = create_app(platform.gateway, platform.settings)
        http = HttpServer(app, platform.settings, tls=tls.context)
        rpc = PublicServer(platform.gateway, platform.settings, tls.grpc_credentials())
        for server in (http, rpc):
            await server.start()
            running.append(server)
        return (f"https://localhost:{http.address.rpartition(':')[2]}", f"localhost:{rpc.address.rpartition(':')[2]}")

    yield start
    for server in running:
        await server.stop()


async def get(url: str, ca: Path, key: str, own: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=str(ca))
    if own is not None:
        context.load_cert_chain(*own)
    async with httpx.AsyncClient(verify=context) as client:
        return (await client.get(url, headers={"authorization": f"Bearer {key}"})).status_code


async def models_over_http(url: str, ca: Path, key: str, own: tuple[Path, Path] | None = None) -> int:
    return await get(f"{url}/v1/models", ca, key, own)


async def tenants(url: str, ca: Path, key: str, own: tuple[Path, Path] | None = None) -> int:
    return await get(f"{url}/admin/v1/tenants", ca, key, own)


def channel_credentials(ca: Path, own: tuple[Path, Path] | None) -> grpc.ChannelCredentials:
    chain, secret = (file.read_bytes() for file in own) if own else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), secret, chain)


async def models_over_grpc(address: str, ca: Path, key: str, own: tuple[Path, Path] | None = None) -> int:
    credentials = channel_credentials(ca, own)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub: Any = InferenceStub(channel)
        call = stub.ListModels(pb.ListModelsRequest(), metadata=(("authorization", f"Bearer {key}"),), timeout=10)
        return len((await call).models)


async def test_both_fronts_speak_tls_and_take_a_renewed_certificate_without_a_restart(
    platform: InProcess, serve: Served, tmp_path: Path
) -> None:
    chain, secret = certificate(tmp_path, "first")
    renewed, its_key = certificate(tmp_path, "second")
    tls = Certificates(TlsFiles(chain, secret))
    old = tmp_path / "old.pem"
    old.write_bytes(chain.read_bytes())
    url, address = await serve(tls)
    assert await models_over_http(url, old, platform.api_key) == 200
    assert await models_over_grpc(address, old, platform.api_key) == 1
    with pytest.raises(httpx.ConnectError):
        await models_over_http(url, renewed, platform.api_key)
    chain.write_bytes(b"not a certificate")
    tls.refresh()
    assert await models_over_http(url, old, platform.api_key) == 200  # the old one holds
    chain.write_bytes(renewed.read_bytes())
    secret.write_bytes(its_key.read_bytes())
    tls.refresh()
    assert await models_over_http(url, renewed, platform.api_key) == 200
    assert await models_over_grpc(address, renewed, platform.api_key) == 1
    with pytest.raises(httpx.ConnectError):
        await models_over_http(url, old, platform.api_key)


async def test_mutual_tls_refuses_who_shows_no_certificate(platform: InProcess, serve: Served, tmp_path: Path) -> None:
    chain, secret = certificate(tmp_path, "server")
    own = certificate(tmp_path, "client")
    stranger = certificate(tmp_path, "stranger")
    url, address = await serve(Certificates(TlsFiles(chain, secret, own[0])))
    assert await models_over_http(url, chain, platform.api_key, own) == 200
    assert await models_over_grpc(address, chain, platform.api_key, own) == 1
    for wrong in (None, stranger):
        with pytest.raises(httpx.HTTPError):
            await models_over_http(url, chain, platform.api_key, wrong)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models_over_grpc(address, chain, platform.api_key, wrong)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_admin_api_has_the_public_ports_certificate_and_asks_for_one_where_they_do(
    redis_url: str, tmp_path: Path
) -> None:
    chain, secret = certificate(tmp_path, "server")
    own, admin_key = certificate(tmp_path, "client"), "sixteen_letters_"
    settings = GatewaySettings(
        redis_url=redis_url, admin_key=admin_key, admin_port=0, tls_certificate=chain, tls_key=secret
    )
    for mutual in (False, True):
        process = GatewayProcess(replace(settings, tls_client_ca=own[0] if mutual else None), off())
        addresses = await process.start()
        try:
            url = f"https://localhost:{addresses.admin.rpartition(':')[2]}"
            assert addresses.admin.startswith("https://")
            assert await tenants(url, chain, admin_key, own) == 200
            assert await tenants(url, chain, "another_sixteen_", own) == 401
            if mutual:
                with pytest.raises(httpx.HTTPError):
                    await tenants(url, chain, admin_key)
            else:
                assert await tenants(url, chain, admin_key) == 200
            with pytest.raises(httpx.HTTPError):  # not in clear
                async with httpx.AsyncClient() as client:
                    await client.get(url.replace("https", "http"))
        finally:
            await process.stop()


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    chain, secret = certificate(tmp_path, "one")
    _, other_key = certificate(tmp_path, "other")
    with pytest.raises(ConfigurationError, match=r"none\.pem cannot be read"):
        Certificates(TlsFiles(tmp_path / "none.pem", secret))
    with pytest.raises(ConfigurationError, match=r"no certificate can be made of .*one\.pem, .*other\.key"):
        Certificates(TlsFiles(chain, other_key))
    with pytest.raises(ConfigurationError, match="go together"):
        GatewaySettings(tls_certificate=chain)
    with pytest.raises(ConfigurationError, match="go together; missing: internal_tls_key, internal_tls_ca"):
        GatewaySettings(internal_tls_certificate=chain)
    with pytest.raises(ConfigurationError, match="needs tls_certificate"):
        GatewaySettings(tls_client_ca=chain)
