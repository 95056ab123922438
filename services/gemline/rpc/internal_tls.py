"""Mutual TLS between our processes. Knows no service.

What is checked, at either end of every connection: the other's certificate leads to the CA of the files, is valid now,
and is for the DNS name `gemline-internal`. Processes are dialled by address, so this one name stands for all of them; a
certificate that the same CA gave to anything else, such as a public port, is not taken, neither of a server nor of a
caller. Roles are not told apart: whoever holds such a certificate belongs to the platform.
"""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import logging
import ssl
import threading
from typing import Any

import grpc
import grpc.aio

from gemline.errors import ConfigurationError, Forbidden
from gemline.rpc.options import OpenChannel, channel_options, open_channel
from gemline.rpc.server_certificates import ServerCertificates
from gemline.rpc.tls_files import Pem, TlsFiles

NAME = "gemline-internal"

log = logging.getLogger(__name__)


class InternalTls:
    """Of one process, for its server and its channels; may be used by any thread.

    The files are looked at whenever a connection is made, so a renewed certificate holds from the next one on; those
    that stand are not touched. A channel keeps what held when it was opened, also when it connects again.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigurationError, which names the file, when they cannot be used or would be refused by others."""
        self._files = files
        self._lock = threading.Lock()
        self._pem = self._seen = files.read()
        _show_to_itself(files)

    def open_channel(self, address: str) -> grpc.aio.Channel:
        """As `rpc.options.open_channel`, with the certificate of now."""
        pem = self._current()
        credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
        options = (*channel_options(), ("grpc.ssl_target_name_override", NAME))
        return grpc.aio.secure_channel(address, credentials, options=options)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Each handshake takes the certificate of then. The caller's name is for `check_caller` to look at."""
        return ServerCertificates(self._current).credentials()

    def _current(self) -> Pem:
        """What the files hold; what cannot be used is logged, and what was read before still holds."""
        with self._lock:
            try:
                if (pem := self._files.read()) != self._seen:
                    self._take(pem)
            except ConfigurationError as error:
                log.error("%s; the internal certificate read before still holds", error.message)
            return self._pem

    def _take(self, pem: Pem) -> None:
        self._seen = pem  # what is wrong with it is told once
        _show_to_itself(self._files)
        if self._files.read() == pem:  # or they are being replaced just now: the next connection looks again
            self._pem = pem
            log.info("the internal certificate %s was read again", self._files.certificate)


def check_caller(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """The caller's certificate has been verified by gRPC; raises Forbidden when it is not for our name."""
    if NAME.encode() not in context.auth_context().get("peer_dns", ()):
        raise Forbidden(f"the caller's certificate is not for {NAME}")


def opener(tls: InternalTls | None) -> OpenChannel:
    """How this process opens channels to our others."""
    return open_channel if tls is None else tls.open_channel


def _show_to_itself(files: TlsFiles) -> None:
    """A whole handshake in memory, the certificate at both ends: what others would refuse is known before they do."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    client.hostname_checks_common_name = False
    for context in (server, client):
        files.load_into(context)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=NAME),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        while ends:
            ends = [end for end in ends if not _is_done(end)]
    except ssl.SSLError as error:
        said = getattr(error, "verify_message", "") or error
        raise ConfigurationError(f"{files.certificate} is refused by who trusts {files.ca}: {said}") from error


def _is_done(end: ssl.SSLObject) -> bool:
    """Whether that end has no more to say or hear before it takes the other; raises ssl.SSLError when it does not."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
