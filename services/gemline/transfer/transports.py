"""The ways there are for keys and values between two workers, and which of them a call may take. Knows no socket."""

import importlib.util
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Literal

from gemline.errors import ConfigurationError
from gemline.internal.v1 import prefill_pb2 as pb
from gemline.internal.v1.prefill_pb2 import KvOffer

# What an operator may ask for. gRPC is always there: what else was asked for is used where it can be.
KvTransportSetting = Literal["auto", "shm", "socket", "grpc", "nixl"]


class Transport(Enum):
    """One way. Its value is its name for people."""

    GRPC = "grpc"
    SOCKET = "socket"
    SHM = "shm"
    NIXL = "nixl"


_TO_PROTO = {
    Transport.GRPC: pb.KV_TRANSPORT_GRPC,
    Transport.SOCKET: pb.KV_TRANSPORT_SOCKET,
    Transport.SHM: pb.KV_TRANSPORT_SHM,
    Transport.NIXL: pb.KV_TRANSPORT_NIXL,
}
_FROM_PROTO = {message: transport for transport, message in _TO_PROTO.items()}
_BEST_FIRST = (Transport.NIXL, Transport.SHM, Transport.SOCKET)


def to_proto(transport: Transport) -> pb.KvTransport.ValueType:
    """The message's number."""
    return _TO_PROTO[transport]


def from_proto(number: pb.KvTransport.ValueType) -> Transport | None:
    """The transport of that number; None for one that only a newer worker knows."""
    return _FROM_PROTO.get(number)


def allowed(setting: KvTransportSetting, *, is_encrypted: bool = False) -> frozenset[Transport]:
    """What beside gRPC this process can do and may use. NIXL has to be asked for by name.

    `is_encrypted`: nothing may leave the host in clear, which leaves shared memory. Raises ConfigurationError when the
    setting asks for what then may not be.
    """
    asked = {Transport.SHM, Transport.SOCKET} if setting == "auto" else {Transport(setting)}
    if is_encrypted:
        if setting in ("socket", "nixl"):
            message = f"kv_transport {setting} sends keys and values in clear; with internal TLS: auto, shm or grpc"
            raise ConfigurationError(message, param="kv_transport")
        asked.discard(Transport.SOCKET)
    can = {Transport.SOCKET}
    if host_id():
        can.add(Transport.SHM)
    if Transport.NIXL in asked and importlib.util.find_spec("nixl") is not None:
        can.add(Transport.NIXL)
    return frozenset(asked & can)


def choices(offer: KvOffer, ours: Iterable[Transport], our_host_id: str) -> list[Transport]:
    """What a call with that offer can be served by beside gRPC, the best first."""
    theirs = {from_proto(number) for number in offer.transports}
    both = theirs.intersection(ours)
    if not our_host_id or offer.host_id != our_host_id:
        both.discard(Transport.SHM)
    return [transport for transport in _BEST_FIRST if transport in both]


def host_id() -> str:
    """Equal in two processes that can share memory; empty where that is not possible.

    That is one running kernel, and one network namespace: there are the sockets over which memory is handed from one
    process to the other. Containers of one pod share it, pods do not, and neither needs a common /dev/shm.
    """
    if not hasattr(os, "memfd_create"):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return ""
