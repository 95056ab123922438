"""What an operator may set on a gateway. Plain data; reads no file and no environment."""

from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from gemline.errors import ConfigurationError
from gemline.rpc.tls_files import TlsFiles, internal_files

MIN_ADMIN_KEY = 16  # characters


def _new_gateway_id() -> str:
    return f"gateway-{uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """One gateway process. Port 0 is any free one; times are in seconds."""

    redis_url: str = ""
    keys_file: Path | None = None  # lines `tenant:key`, besides the keys in Redis
    http_host: str = "127.0.0.1"
    http_port: int = 0
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 0
    admin_key: str = field(default="", repr=False)  # of the admin API; empty: there is none
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    gateway_id: str = field(default_factory=_new_gateway_id)
    body_limit_bytes: int = 4 * 1024 * 1024  # of an HTTP body, and of a public gRPC message
    connect_timeout_s: float = 2.0  # to wait for a decode worker that is being attached to
    encode_timeout_s: float = 5.0  # of one attempt on one tokenization worker
    resume_timeout_s: float = 10.0  # for a request whose worker has gone, while no other can take it
    silence_timeout_s: float = 30.0  # without a step of a worker that owes tokens, before it is given up
    quarantine_s: float = 300.0  # for a prompt that workers died of
    drain_timeout_s: float = 30.0  # for running answers, after SIGTERM
    share_without_redis: float = 0.0  # of each limit, while Redis is away; 0: requests with limits are refused then
    session_key: str = field(default="", repr=False)  # 32 bytes, base64: encrypts what sessions hold
    session_secret: str = field(default="", repr=False)  # goes into the names under which Redis keeps sessions
    tls_certificate: Path | None = None  # PEM, of the public ports and the admin API; without it they speak in clear
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # clients must show a certificate that it signed
    internal_tls_certificate: Path | None = None  # PEM, of the connections to workers; all three, or none: in clear
    internal_tls_key: Path | None = None
    internal_tls_ca: Path | None = None
    ready_file: Path | None = None  # written, as JSON with the addresses, once requests can be answered

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the field, the value and the range."""
        for name in ("http_port", "grpc_port", "admin_port"):
            port: int = getattr(self, name)
            if not 0 <= port <= 65535:
                raise ConfigurationError(f"{name} must be from 0 to 65535, not {port}")
        _check_admin_key(self.admin_key)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigurationError("tls_certificate and tls_key go together: one of them is missing")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ConfigurationError("tls_client_ca needs tls_certificate and tls_key")
        _ = self.internal_tls  # all three files or none
        for name in ("body_limit_bytes", "connect_timeout_s", "encode_timeout_s", "silence_timeout_s"):
            value: float = getattr(self, name)
            if value <= 0:
                raise ConfigurationError(f"{name} must be above 0, not {value}")
        if not 0 <= self.share_without_redis <= 1:
            raise ConfigurationError(f"share_without_redis must be from 0 to 1, not {self.share_without_redis}")
        for name in ("resume_timeout_s", "quarantine_s", "drain_timeout_s"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigurationError(f"{name} must be 0 or more, not {value}")

    @property
    def internal_tls(self) -> TlsFiles | None:
        """Of the connections to workers."""
        return internal_files(self.internal_tls_certificate, self.internal_tls_key, self.internal_tls_ca)


def _check_admin_key(key: str) -> None:
    """Whoever has it may do everything; never shown."""
    if not key:
        return
    if len(key) < MIN_ADMIN_KEY:
        raise ConfigurationError(f"admin_key has {len(key)} characters, under {MIN_ADMIN_KEY}", param="admin_key")
    if not all("!" <= letter <= "~" for letter in key):
        raise ConfigurationError("admin_key may have printable ASCII characters alone, and no space", param="admin_key")


def joined(host: str, port: int) -> str:
    """host:port, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
