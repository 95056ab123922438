"""Mutual TLS between our processes: who is taken and who is not, and certificates renewed while all goes on."""

import asyncio
import datetime
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.certificates import Authority, renew
from support.tls_server import SERVING, ask, served

from gemline.errors import ConfigurationError
from gemline.host import bind_server
from gemline.rpc.health import Health
from gemline.rpc.internal_tls import NAME, InternalTls
from gemline.rpc.options import open_channel, server_options
from gemline.rpc.tls_files import TlsFiles, internal_files


async def refusal(channel: grpc.aio.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel)
    return caught.value.code()


def trusting(ca: Path, own: TlsFiles | None, name: str = NAME) -> Callable[[str], grpc.aio.Channel]:
    """What a stranger may try: any certificate or none, taking the server's, whatever it is for."""
    chain, key = (own.certificate.read_bytes(), own.key.read_bytes()) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)
    return lambda address: grpc.aio.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
async def address(authority: Authority) -> AsyncIterator[str]:
    async with served(InternalTls(authority.issue("server"))) as (address, _):
        yield address


async def test_a_process_with_a_certificate_of_the_ca_is_answered(authority: Authority, address: str) -> None:
    assert await ask(InternalTls(authority.issue("caller")).open_channel(address)) == SERVING


async def test_who_shows_no_certificate_or_one_of_another_ca_is_not_connected(
    authority: Authority, address: str, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "theirs").issue("stranger")
    assert await refusal(open_channel(address)) is grpc.StatusCode.UNAVAILABLE
    for own in (None, stranger):
        assert await refusal(trusting(authority.ca, own)(address)) is grpc.StatusCode.UNAVAILABLE
    assert await ask(trusting(authority.ca, authority.issue("caller"))(address)) == SERVING


async def test_a_certificate_that_the_ca_gave_to_something_else_is_refused_of_a_caller(
    authority: Authority, address: str
) -> None:
    public = trusting(authority.ca, authority.issue("public", dns="api.example.com"))
    assert await refusal(public(address)) is grpc.StatusCode.PERMISSION_DENIED
    async with public(address) as channel:
        stub: Any = HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=f"not for {NAME}"):  # of a stream too
            await anext(aiter(stub.Watch(HealthCheckRequest())))


@pytest.mark.parametrize("dns", ["api.example.com", f"x.{NAME}"])
async def test_a_certificate_that_the_ca_gave_to_something_else_is_refused_of_a_server(
    authority: Authority, dns: str
) -> None:
    pem = authority.issue("public", dns=dns).read()
    server = grpc.aio.server(options=server_options())
    await Health(server, []).set_serving(True)
    port = bind_server(server, "127.0.0.1", 0, grpc.ssl_server_credentials([(pem.key, pem.certificate)]))
    await server.start()
    try:
        caller = InternalTls(authority.issue("caller"))
        assert await refusal(caller.open_channel(f"127.0.0.1:{port}")) is grpc.StatusCode.UNAVAILABLE
        assert await ask(trusting(authority.ca, None, dns)(f"127.0.0.1:{port}")) == SERVING
    finally:
        await server.stop(None)


async def test_a_server_of_another_ca_is_not_told_anything(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "theirs").issue("stranger")
    async with served(InternalTls(stranger)) as (address, _):
        assert (
            await refusal(InternalTls(authority.issue("caller")).open_channel(address)) is grpc.StatusCode.UNAVAILABLE
        )
        assert await ask(InternalTls(stranger).open_channel(address)) == SERVING


async def test_renewed_certificates_hold_from_the_next_connection_on_and_streams_go_on(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a new CA, so that nothing of the old files would be taken."""
    caplog.set_level(logging.INFO, "gemline.rpc.internal_tls")
    old, files = authority.issue("old"), authority.issue("server")
    files = files._replace(ca=tmp_path / "trusted.pem")
    new = Authority(tmp_path, "next").issue("new")
    renew(files, authority.issue("first"))
    tls = InternalTls(files)
    async with served(tls) as (address, health), tls.open_channel(address) as standing:
        stub: Any = HealthStub(standing)
        watch = aiter(stub.Watch(HealthCheckRequest()))
        assert (await anext(watch)).status == SERVING
        renew(files, new)
        assert await ask(InternalTls(new).open_channel(address)) == SERVING
        assert await ask(tls.open_channel(address)) == SERVING
        assert await refusal(InternalTls(old).open_channel(address)) is grpc.StatusCode.UNAVAILABLE
        await health.set_serving(False)
        assert (await anext(watch)).status == HealthCheckResponse.NOT_SERVING
    assert caplog.text.count("was read again") == 1


async def test_files_that_are_half_renewed_or_spoiled_leave_the_old_ones_in_force(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    files, new = authority.issue("server"), authority.issue("new")
    tls = InternalTls(files)
    async with served(tls) as (address, _):
        files.certificate.write_bytes(new.certificate.read_bytes())
        assert await ask(tls.open_channel(address)) == SERVING
        assert caplog.text.count("no certificate can be made of") == 1  # told once, not at every connection
        files.key.write_bytes(new.key.read_bytes())
        assert await ask(tls.open_channel(address)) == SERVING
        files.key.unlink()
        assert await ask(tls.open_channel(address)) == SERVING
        assert "server.key cannot be read: No such file" in caplog.text


async def test_many_connections_at_the_moment_of_a_renewal_are_all_answered(authority: Authority) -> None:
    files = authority.issue("server")
    tls = InternalTls(files)
    async with served(tls) as (address, _):
        asking = [asyncio.create_task(ask(tls.open_channel(address))) for _ in range(8)]
        await asyncio.sleep(0)
        renew(files, authority.issue("new"))
        asking += [asyncio.create_task(ask(tls.open_channel(address))) for _ in range(8)]
        assert await asyncio.gather(*asking) == [SERVING] * 16


def test_files_that_others_would_refuse_are_named_at_start(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("good"), Authority(tmp_path, "theirs")
    (tmp_path / "empty.pem").touch()
    (tmp_path / "folder").mkdir()
    wrong = {
        r"none\.pem cannot be read: No such file": good._replace(certificate=tmp_path / "none.pem"),
        r"none\.key cannot be read: No such file": good._replace(key=tmp_path / "none.key"),
        r"folder cannot be read: Is a directory": good._replace(ca=tmp_path / "folder"),
        r"of .*good\.pem, .*other\.key: .*MISMATCH": good._replace(key=authority.issue("other").key),
        r"of .*empty\.pem, .*good\.key": good._replace(certificate=tmp_path / "empty.pem"),
        r"empty\.pem holds no certificate of a CA": good._replace(ca=tmp_path / "empty.pem"),
        r"good\.pem is refused by who trusts .*theirs\.pem: unable to get local issuer": good._replace(ca=other.ca),
        r"public\.pem is refused .*not valid for 'gemline-internal'": authority.issue("public", dns="api.example.com"),
        r"late\.pem is refused .*certificate has expired": authority.issue("late", lasts=-datetime.timedelta(hours=1)),
        r"half\.pem is refused .*certificate purpose": authority.issue(
            "half", usages=[ExtendedKeyUsageOID.SERVER_AUTH]
        ),
    }
    for said, files in wrong.items():
        with pytest.raises(ConfigurationError, match=said):
            InternalTls(files)


def test_all_three_files_are_given_or_none() -> None:
    assert internal_files(None, None, None) is None
    assert internal_files("a", "b", "c") == TlsFiles(Path("a"), Path("b"), Path("c"))
    with pytest.raises(ConfigurationError, match="go together; missing: internal_tls_key, internal_tls_ca"):
        internal_files("a", None, None)
