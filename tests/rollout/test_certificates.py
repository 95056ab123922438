"""`gemline certificates`: what it makes our own servers and clients take, when it renews, and what it leaves alone."""

import base64
import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client
from support.kube_api import FakeKube
from support.tls_server import SERVING, ask, served

from gemline.errors import ConfigurationError, Conflict
from gemline.rollout.certificates import keep
from gemline.rollout.kube import Kube
from gemline.rollout.secrets import RBAC_VERBS, Secrets
from gemline.rpc.internal_tls import InternalTls
from gemline.rpc.tls_files import TlsFiles

NAME = "prod-gemline-internal"
CA = f"{NAME}-ca"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


async def kept(kube: FakeKube, now: datetime.datetime = NOW) -> list[str]:
    lines: list[str] = []
    api = client.ApiClient(client.Configuration(host=kube.url))
    await keep(Secrets(Kube(api, "ns")), NAME, now, lines.append)
    return lines


def data(kube: FakeKube, name: str = NAME) -> dict[str, bytes]:
    found: dict[str, str] = kube.get("secrets", name)["data"]
    return {key: base64.b64decode(value) for key, value in found.items()}


def mounted(kube: FakeKube, folder: Path) -> TlsFiles:
    """As a pod has it."""
    folder.mkdir()
    for key, value in data(kube).items():
        (folder / key).write_bytes(value)
    return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


async def met(server_files: TlsFiles, client_files: TlsFiles) -> None:
    """A call from one of our processes to another, each by its own files."""
    async with served(InternalTls(server_files)) as (address, _):
        assert await ask(InternalTls(client_files).open_channel(address)) == SERVING


async def test_our_own_processes_take_what_it_makes(kube: FakeKube, tmp_path: Path) -> None:
    assert await kept(kube) == [f"{CA}: made", f"{NAME}: made"]
    files = mounted(kube, tmp_path / "tls")
    await met(files, files)
    assert set(data(kube)) == {"tls.crt", "tls.key", "ca.crt"}
    assert data(kube)["ca.crt"] == data(kube, CA)["tls.crt"]
    assert kube.get("secrets", NAME)["type"] == "kubernetes.io/tls"


async def test_what_is_good_is_left_alone(kube: FakeKube) -> None:
    await kept(kube)
    before = repr(kube.objects)
    assert await kept(kube, NOW + 59 * DAY) == [f"{NAME}: is good"]
    assert repr(kube.objects) == before


async def test_a_certificate_is_renewed_in_time_and_meets_those_of_before(kube: FakeKube, tmp_path: Path) -> None:
    await kept(kube, NOW - 61 * DAY)
    old, before = mounted(kube, tmp_path / "old"), data(kube)
    assert await kept(kube) == [f"{NAME}: renewed"]
    assert data(kube)["tls.key"] != before["tls.key"]
    assert data(kube)["ca.crt"] == before["ca.crt"]
    new = mounted(kube, tmp_path / "new")
    await met(old, new)
    await met(new, old)


async def test_a_ca_is_renewed_with_its_key_so_that_nobody_is_cut_off(kube: FakeKube, tmp_path: Path) -> None:
    await kept(kube, NOW - 3290 * DAY)
    await kept(kube, NOW - 50 * DAY)
    old, before = mounted(kube, tmp_path / "old"), data(kube, CA)
    # 360 of its days are left; the certificate, which has 40, comes with it for the sake of ca.crt.
    assert await kept(kube) == [f"{CA}: renewed", f"{NAME}: renewed"]
    new, after = mounted(kube, tmp_path / "new"), data(kube, CA)
    assert after["tls.key"] == before["tls.key"]
    assert after["tls.crt"] != before["tls.crt"]
    await met(old, new)
    await met(new, old)


async def test_a_certificate_of_another_ca_is_left_and_told(kube: FakeKube) -> None:
    await kept(kube)
    other = dict(kube.get("secrets", NAME)["data"])
    kube.objects.clear()
    await kept(kube)
    kube.get("secrets", NAME)["data"] = other
    before = repr(kube.objects)
    with pytest.raises(Conflict, match=f"Secret {NAME} holds a certificate of another CA than {CA}: delete it"):
        await kept(kube)
    assert repr(kube.objects) == before
    del kube.objects[next(key for key in kube.objects if key.name == CA)]
    with pytest.raises(Conflict, match=f"Secret {NAME} is there, and that of its CA, {CA}, is not"):
        await kept(kube)
    assert not any(key.name == CA for key in kube.objects)


def key_on_a_curve_that_is_not_known() -> bytes:
    """A key on P-256 that says prime239v3 of itself."""
    own = ec.generate_private_key(ec.SECP256R1())
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    der = own.private_bytes(serialization.Encoding.DER, form, none)
    told = der.replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030106"))
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(told) + b"-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [("tls.crt", b"nothing"), ("tls.key", b"nothing"), ("tls.key", key_on_a_curve_that_is_not_known())],
    ids=["no certificate", "no key", "a key of another kind"],
)
async def test_a_secret_that_holds_no_certificate_is_named(kube: FakeKube, key: str, value: bytes) -> None:
    await kept(kube)
    kube.get("secrets", CA)["data"][key] = base64.b64encode(value).decode()
    with pytest.raises(ConfigurationError, match=f"Secret {CA}: no certificate with a key"):
        await kept(kube)


async def test_a_key_that_is_not_the_certificates_is_named(kube: FakeKube) -> None:
    await kept(kube)
    kube.get("secrets", CA)["data"]["tls.key"] = kube.get("secrets", NAME)["data"]["tls.key"]
    with pytest.raises(ConfigurationError, match=f"Secret {CA}: the key is not the certificate's"):
        await kept(kube)


async def test_what_somebody_else_has_written_meanwhile_is_not_overwritten(kube: FakeKube) -> None:
    api = client.ApiClient(client.Configuration(host=kube.url))
    secrets = Secrets(Kube(api, "ns"))
    await kept(kube)
    held = await secrets.read(NAME)
    assert held is not None
    await secrets.write(NAME, {"tls.crt": b"theirs"}, {}, held)
    with pytest.raises(Conflict, match=f"cannot patch secrets {NAME}"):
        await secrets.write(NAME, {"tls.crt": b"ours"}, {}, held)
    with pytest.raises(Conflict, match=f"cannot create secrets {NAME}"):
        await secrets.write(NAME, {"tls.crt": b"ours", "tls.key": b""}, {}, None)
    assert data(kube)["tls.crt"] == b"theirs"


async def test_it_asks_for_the_verbs_that_are_written_down(kube: FakeKube) -> None:
    await kept(kube, NOW - 61 * DAY)
    await kept(kube)
    assert kube.verbs == {"secrets": set(RBAC_VERBS)}
