"""How a client reaches its gateway: TLS, keepalive, and the gRPC options that follow from them."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from gemline.errors import ConfigurationError

_MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a long answer with 20 log-probabilities a token outgrows gRPC's 4 MiB


@dataclass(frozen=True, slots=True)
class Tls:
    """A channel over TLS. Without `root_certificates` (a PEM file) it trusts gRPC's own roots."""

    root_certificates: Path | None = None
    server_name: str | None = None  # the name its certificate must hold, where the address holds another


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Pings while a call is open, so that a frozen gateway or a dead link is found in interval_s + timeout_s."""

    interval_s: float = 10.0
    timeout_s: float = 5.0


def channel_options(keepalive: Keepalive, tls: Tls | None) -> tuple[tuple[str, str | int], ...]:
    """gRPC's options for the channel."""
    timeout_ms = round(keepalive.timeout_s * 1000)
    options: tuple[tuple[str, str | int], ...] = (
        ("grpc.keepalive_time_ms", round(keepalive.interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it a frozen peer is noticed after a minute
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
        ("grpc.enable_retries", 0),  # retry.py decides: gRPC's own would multiply with it
        ("grpc.initial_reconnect_backoff_ms", 200),  # a gateway that restarts is back in seconds, not minutes
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),  # two clients with different options never share a connection
    )
    if tls and tls.server_name:
        options += (("grpc.ssl_target_name_override", tls.server_name),)
    return options


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Credentials that check the gateway's certificate; raises ConfigurationError for an unreadable file."""
    if tls.root_certificates is None:
        return grpc.ssl_channel_credentials()
    try:
        roots = tls.root_certificates.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"root_certificates {tls.root_certificates}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in roots:
        raise ConfigurationError(f"root_certificates {tls.root_certificates}: holds no PEM certificate")
    return grpc.ssl_channel_credentials(root_certificates=roots)


def call_metadata(api_key: str | None) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with every call; raises ConfigurationError for a key that a header cannot carry."""
    if api_key is None:
        return ()
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise ConfigurationError("api_key must be printable ASCII without spaces around it, and not empty")
    return (("authorization", f"Bearer {api_key}"),)
