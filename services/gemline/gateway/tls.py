"""The public ports' certificate, read again whenever its files change: a renewed one holds for the next connection."""

import logging
import ssl
import threading
from pathlib import Path
from typing import NamedTuple

import grpc

from gemline.errors import ConfigurationError

CHECK_S = 5.0  # between two looks at the files

log = logging.getLogger(__name__)


class TlsFiles(NamedTuple):
    """PEM files: a chain, its key without a passphrase, and, for mutual TLS, who signs clients' certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Certificates:
    """Of one process, for its HTTP and its gRPC server. `refresh` may be called from any thread, at any time."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigurationError, which names the file, when they cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._version = self._versions()
        self._check()
        self.context = self._new_context()
        self._for_grpc = self._grpc_configuration()

    def refresh(self) -> None:
        """Takes changed files; what cannot be used is logged, and the old ones hold."""
        with self._lock:
            try:
                version = self._versions()
                if version == self._version:
                    return
                self._check()
                self._load(self.context)
                self._for_grpc = self._grpc_configuration()
                self._version = version
                log.info("the certificate %s was read again", self._files.certificate)
            except ConfigurationError as error:
                log.error("%s; the one read before still holds", error.message)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server; each handshake asks what holds by now."""
        needs_client = self._files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(
            self._for_grpc, lambda: self._for_grpc, require_client_authentication=needs_client
        )

    def _grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        pair = files.key.read_bytes(), files.certificate.read_bytes()
        roots = files.client_ca.read_bytes() if files.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._files.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._files.certificate, self._files.key)
        if self._files.client_ca is not None:
            context.load_verify_locations(self._files.client_ca)

    def _check(self) -> None:
        """On a context of its own: one that serves must not be left with half of a new pair."""
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(str(file) for file in self._files if file is not None)
            raise ConfigurationError(
                f"no certificate can be made of {names}: {error}", param="tls_certificate"
            ) from error

    def _versions(self) -> tuple[tuple[int, int], ...]:
        found = []
        for file in self._files:
            if file is None:
                continue
            try:
                status = file.stat()
            except OSError as error:
                raise ConfigurationError(f"{file} cannot be read: {error.strerror}", param="tls_certificate") from error
            found.append((status.st_mtime_ns, status.st_size))
        return tuple(found)
