"""How our gRPC channels and servers are set up: sizes, keepalive, ports. Knows no service."""

from collections.abc import Callable

import grpc.aio

Options = tuple[tuple[str, int], ...]
OpenChannel = Callable[[str], grpc.aio.Channel]  # to the worker at an address; the caller closes it

INTERNAL_MESSAGE_BYTES = 64 * 2**20  # between our processes; a KV frame is 4 MiB

# A peer that stands still is given up within the sum of both: under 2 s, of which the wait for an answer, which a
# machine with too much to do could miss, is the larger part.
_KEEPALIVE_MS = 600
_KEEPALIVE_TIMEOUT_MS = 1000


def _common(max_message_bytes: int) -> Options:
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Without it a frozen peer is noticed after a minute, whatever the keepalive timeout says.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    )


def channel_options(max_message_bytes: int = INTERNAL_MESSAGE_BYTES) -> Options:
    """Options of a channel to one of our workers: one TCP connection of its own, quick to come back."""
    return (
        *_common(max_message_bytes),
        ("grpc.use_local_subchannel_pool", 1),  # channels to one address otherwise share a connection and its backoff
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_http_proxy", 0),  # a proxy for the internet is none for the cluster
    )


def server_options(max_message_bytes: int = INTERNAL_MESSAGE_BYTES) -> Options:
    """Options of a server whose callers may ping as often as `channel_options` makes them."""
    return (
        *_common(max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),  # an int: as a string, or left out, two servers bind one port and neither is told
    )


def open_channel(address: str, max_message_bytes: int = INTERNAL_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to the worker at `address` (host:port). It belongs to the running event loop; the caller closes it."""
    return grpc.aio.insecure_channel(address, options=channel_options(max_message_bytes))
