"""Credentials of a gRPC server whose certificate may change while it serves."""

import time
from collections.abc import Callable

import grpc

from gemline.rpc.tls_files import Pem

_PAUSE_S = 0.1


class ServerCertificates:
    """For one port. `current` gives what holds now; gRPC's threads call it, at every handshake."""

    def __init__(self, current: Callable[[], Pem]) -> None:
        self._current = current
        self._shown = current()

    def credentials(self) -> grpc.ServerCredentials:
        """Callers must show a certificate where there is a CA."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._shown),
            self._changed,  # type: ignore[arg-type]  # the stubs do not know of None, grpc's documentation does
            require_client_authentication=self._shown.ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None keeps what is there.

        gRPC (1.85, ssl_security_connector.cc) asks under a lock and replaces what handshakes are made of under it, but
        makes them outside: one that is being made then crashes the process. So it is told of changes alone, not at each
        handshake, and after a pause in which those that have been asked for are made; the lock holds back all others.
        """
        pem = self._current()
        if pem == self._shown:
            return None
        time.sleep(_PAUSE_S)
        self._shown = pem
        return _configuration(pem)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.ca)
