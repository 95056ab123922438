"""PEM files of one end of TLS: read, and refused by name where they cannot be used. Knows no server."""

import ssl
from pathlib import Path
from typing import NamedTuple

from gemline.errors import ConfigurationError


class Pem(NamedTuple):
    """What the files hold."""

    certificate: bytes
    key: bytes
    ca: bytes | None


class TlsFiles(NamedTuple):
    """A chain, its key without a passphrase, and, where the other end must show a certificate, who signs those."""

    certificate: Path
    key: Path
    ca: Path | None = None

    def read(self) -> Pem:
        """As they are now. Raises ConfigurationError, which names the file that cannot be read."""
        return Pem(_read(self.certificate), _read(self.key), None if self.ca is None else _read(self.ca))

    def load_into(self, context: ssl.SSLContext) -> None:
        """Raises ConfigurationError, which names the files that are wrong or do not match."""
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # or OpenSSL asks for one at the terminal
        except (OSError, ssl.SSLError) as error:
            message = f"no certificate can be made of {self.certificate}, {self.key}: {error}"
            raise ConfigurationError(message) from error
        if self.ca is None:
            return
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.ca} holds no certificate of a CA: {error}") from error


File = Path | str | None


def internal_files(certificate: File, key: File, ca: File) -> TlsFiles | None:
    """Of the connections between our processes; None where no file is given, as then they speak in clear.

    Raises ConfigurationError when only some are given.
    """
    if certificate is not None and key is not None and ca is not None:
        return TlsFiles(Path(certificate), Path(key), Path(ca))
    given = {"internal_tls_certificate": certificate, "internal_tls_key": key, "internal_tls_ca": ca}
    missing = [name for name, file in given.items() if file is None]
    if len(missing) == len(given):
        return None
    raise ConfigurationError(f"{', '.join(given)} go together; missing: {', '.join(missing)}", param=missing[0])


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
