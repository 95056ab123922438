"""The public ports' certificate, read again whenever its files change: a renewed one holds for the next connection."""

import logging
import ssl

import grpc

from gemline.errors import ConfigurationError
from gemline.rpc.server_certificates import ServerCertificates
from gemline.rpc.tls_files import TlsFiles

CHECK_S = 5.0  # between two looks at the files

log = logging.getLogger(__name__)


class Certificates:
    """Of one process, for its HTTP, gRPC and admin servers. `refresh` is for the thread of the event loop that has the
    HTTP servers alone: a context must not change under a handshake.

    Clients must show a certificate where the files name a CA, of which any will do: API keys say who they are.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigurationError, which names the file, when they cannot be used."""
        self._files = files
        self._pem = files.read()
        self._check()
        self.context = self._new_context()

    def refresh(self) -> None:
        """Takes changed files; what cannot be used is logged, and the old ones hold."""
        try:
            pem = self._files.read()
            if pem == self._pem:
                return
            self._check()
            self._files.load_into(self.context)
            self._pem = pem
            log.info("the certificate %s was read again", self._files.certificate)
        except ConfigurationError as error:
            log.error("%s; the one read before still holds", error.message)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server; each handshake asks what holds by now."""
        return ServerCertificates(lambda: self._pem).credentials()

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._files.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        self._files.load_into(context)
        return context

    def _check(self) -> None:
        """On a context of its own: one that serves must not be left with half of a new pair."""
        self._files.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
