"""A CA of one release's own, and the certificate by which its processes know each other. Keeps nothing.

Keys are ECDSA on P-256, everything is PEM. A CA that is renewed keeps its name and key, so certificates of before and
after are taken by whoever trusts either.
"""

import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gemline.errors import ConfigurationError
from gemline.rpc.internal_tls import NAME

CA_LASTS = datetime.timedelta(days=3650)
CA_RENEWED_BEFORE = datetime.timedelta(days=365)
LASTS = datetime.timedelta(days=90)
RENEWED_BEFORE = datetime.timedelta(days=30)
_CLOCKS_DIFFER = datetime.timedelta(minutes=5)


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: bytes
    key: bytes


def new_authority(name: str, now: datetime.datetime) -> Pair:
    """A CA of that common name, with a new key."""
    return _authority(_name(name), ec.generate_private_key(ec.SECP256R1()), now)


def renewed_authority(authority: Pair, now: datetime.datetime) -> Pair:
    """The same CA for as long again. Raises as `is_due`."""
    certificate, key = _read(authority)
    return _authority(certificate.subject, key, now)


def issue(authority: Pair, now: datetime.datetime) -> Pair:
    """A certificate for `gemline-internal`, good for both ends of a connection. Raises as `is_due`."""
    ca, ca_key = _read(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_name(NAME), ca.subject, key, now, LASTS)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(ca_key, hashes.SHA256()), key)


def is_due(pair: Pair, renewed_before: datetime.timedelta, now: datetime.datetime) -> bool:
    """Whether a certificate ends so soon that another is needed.

    Raises ConfigurationError when it is none, or its key is none of ours or not its own.
    """
    certificate, _ = _read(pair)
    return certificate.not_valid_after_utc - now < renewed_before


def is_by(pair: Pair, authority: Pair) -> bool:
    """Whether a certificate was issued by that CA, before or after it was renewed. Raises as `is_due`."""
    try:
        _read(pair)[0].verify_directly_issued_by(_read(authority)[0])
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _authority(name: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> Pair:
    builder = (
        _builder(name, name, key, now, CA_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    lasts: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Of a CA's key, which signs certificates; else of one that signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return Pair(certificate.public_bytes(pem), key.private_bytes(pem, form, none))


def _read(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"no certificate with a key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"the key is no ECDSA key, but {type(key).__name__}")
    if key.public_key() != certificate.public_key():
        raise ConfigurationError("the key is not the certificate's")
    return certificate, key
