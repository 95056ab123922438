"""Certificates for tests: CAs, what they sign, and pairs that sign themselves."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gemline.rpc.internal_tls import NAME
from gemline.rpc.tls_files import TlsFiles

DAY = datetime.timedelta(days=1)
BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate of that organization for localhost, signed by itself, and its key."""
    subject = _subject(name, "localhost")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(subject, subject, key.public_key(), "localhost")
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _written(directory, name, made.sign(key, hashes.SHA256()), key)


class Authority:
    """A CA, whose own certificate lies in `directory`/`name`.pem."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._subject = _subject(name, name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self._subject, self._subject, self._key.public_key(), name)
        made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca, _ = _written(directory, name, made.sign(self._key, hashes.SHA256()), self._key)

    def issue(
        self,
        name: str,
        dns: str = NAME,
        usages: Sequence[x509.ObjectIdentifier] = BOTH_ENDS,
        lasts: datetime.timedelta = DAY,
    ) -> TlsFiles:
        """A certificate for the host name `dns`, its key, and the CA, in files named `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject(name, name), self._subject, key.public_key(), dns, lasts)
        made = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).sign(self._key, hashes.SHA256())
        return TlsFiles(*_written(self._directory, name, made, key), self.ca)


def options(files: TlsFiles) -> tuple[str, ...]:
    """The files as a command takes them."""
    assert files.ca is not None
    names = ("certificate", "key", "ca")
    return tuple(
        part for name, file in zip(names, files, strict=True) for part in (f"--internal-tls-{name}", str(file))
    )


def renew(files: TlsFiles, by: TlsFiles) -> None:
    """Put the contents of the others into the files, as the renewal of a mounted secret does."""
    for old, new in zip(files, by, strict=True):
        assert old is not None
        assert new is not None
        old.write_bytes(new.read_bytes())


def _subject(organization: str, name: str) -> x509.Name:
    parts = {NameOID.ORGANIZATION_NAME: organization, NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    dns: str,
    lasts: datetime.timedelta = DAY,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
    )


def _written(directory: Path, name: str, made: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    chain, secret = directory / f"{name}.pem", directory / f"{name}.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret
