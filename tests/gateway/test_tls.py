"""TLS on the public ports: served, renewed without a restart, refused where it is broken, mutual where asked for."""

import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.in_process import InProcess

from gemline.errors import ConfigurationError
from gemline.gateway.grpc_server import PublicServer
from gemline.gateway.http import create_app
from gemline.gateway.http_server import HttpServer
from gemline.gateway.settings import GatewaySettings
from gemline.gateway.tls import Certificates, TlsFiles
from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate of that organization for localhost, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name), x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]
    )
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = directory / f"{name}.pem", directory / f"{name}.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


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


async def models_over_http(url: str, ca: Path, key: str, own: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=str(ca))
    if own is not None:
        context.load_cert_chain(*own)
    async with httpx.AsyncClient(verify=context) as client:
        return (await client.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})).status_code


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


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    chain, secret = certificate(tmp_path, "one")
    _, other_key = certificate(tmp_path, "other")
    with pytest.raises(ConfigurationError, match=r"none\.pem cannot be read"):
        Certificates(TlsFiles(tmp_path / "none.pem", secret))
    with pytest.raises(ConfigurationError, match=r"no certificate can be made of .*one\.pem, .*other\.key"):
        Certificates(TlsFiles(chain, other_key))
    with pytest.raises(ConfigurationError, match="go together"):
        GatewaySettings(tls_certificate=chain)
    with pytest.raises(ConfigurationError, match="needs tls_certificate"):
        GatewaySettings(tls_client_ca=chain)
