"""Reaching the gateway: TLS, keys, keepalive."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from support.client_api import ClientApi, next_piece
from support.fake_gateway import Say, Served

from gemline.client import Client, Keepalive, RetryPolicy, Tls
from gemline.errors import ConfigurationError, Unavailable
from gemline.rpc.options import server_options

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate for the name gateway.test, made for this run."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=gateway.test", "-addext", "subjectAltName=DNS:gateway.test",
         "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return key, certificate


async def test_tls_checks_the_gateway_against_the_given_roots(
    make_api: Callable[..., ClientApi], certificate: tuple[Path, Path]
) -> None:
    key, roots = certificate
    with Served(credentials=grpc.ssl_server_credentials([(key.read_bytes(), roots.read_bytes())])) as served:
        api = make_api(served.address, tls=Tls(roots, server_name="gateway.test"))
        assert (await api.generate("x")).text == "Hello"
        await api.close()
        for wrong in (Tls(roots, server_name="elsewhere.test"), Tls(roots), Tls(), None):
            api = make_api(served.address, tls=wrong, retry=ONCE)
            with pytest.raises(Unavailable):
                await api.generate("x")
            await api.close()


def test_a_missing_or_wrong_certificate_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem: No such file"):
        Client("127.0.0.1:1", tls=Tls(tmp_path / "nowhere.pem"))
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"text\.pem: holds no PEM certificate"):
        Client("127.0.0.1:1", tls=Tls(tmp_path / "text.pem"))


@pytest.mark.parametrize("api_key", ["", " gk", "gk\n", "gk\x00", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(api_key: str) -> None:
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        Client("127.0.0.1:1", api_key=api_key)
    assert not api_key.strip() or api_key not in caught.value.message


@pytest.mark.slow
def test_a_quiet_call_outlives_its_own_pings_at_our_gateway() -> None:
    with Served(options=server_options()) as served:
        served.gateway.script.append(Say(delay_s=4.5))  # a server that minds pings ends it after 4
        with Client(served.address, keepalive=Keepalive(interval_s=0.5), retry=ONCE) as client:
            assert client.generate("x").text == "Hello"


@pytest.fixture
def foreign_gateway() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway in a process of its own, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "support.fake_gateway"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


async def test_a_frozen_gateway_is_found_by_keepalive(
    make_api: Callable[..., ClientApi], foreign_gateway: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = foreign_gateway
    api = make_api(address, keepalive=Keepalive(interval_s=1.0, timeout_s=0.5))
    stream = api.generate_stream("x")
    assert await next_piece(stream) is not None
    process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        await next_piece(stream)
    assert time.monotonic() - begun < 5
    await api.close()
