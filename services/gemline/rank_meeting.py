"""Where the ranks of a group meet: a file of their machine, or a port of rank 0's node. Then they are a torch group.

Rank 0 opens the place and gives its URL to the others. That one of them is there stands in the place, so rank 0 joins
when all are: a join that waits for a rank that has ended would wait for ever.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore  # where their types are known

from gemline.engine.ranks import TorchRanks

# Ranks wait for each other for as long as nobody asks for anything. A dead one is noticed by its end, not by silence.
_NEVER = timedelta(days=365)
_GET_INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of <linux/sockios.h>
_BACKLOG = 128


class Meeting:
    """One rank's end of the place."""

    def __init__(self, url: str, store: Store, interface: str) -> None:
        """`interface`: the network interface that the other ranks reach this one by."""
        self.url = url
        self._store = store
        self._interface = interface

    @classmethod
    def in_file(cls, path: Path, num_ranks: int) -> "Meeting":
        """For ranks of this machine: whoever cannot read the file cannot join."""
        return cls(f"file://{path}", FileStore(str(path), num_ranks), "lo")

    @classmethod
    def at_port(cls, address: str, num_ranks: int) -> "Meeting":
        """For ranks of several nodes, too: a free port of this address alone, an IPv4 one of this machine."""
        listener = socket.create_server((address, 0), backlog=_BACKLOG)
        port = listener.getsockname()[1]
        store = TCPStore(
            address,
            port,
            num_ranks,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
            use_libuv=True,
        )
        return cls(f"tcp://{address}:{port}", store, interface_of(address))

    @classmethod
    def at(cls, url: str, num_ranks: int) -> "Meeting":
        """A place that rank 0 has opened."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            return cls.in_file(Path(parts.path), num_ranks)
        host, port = str(parts.hostname), int(parts.port or 0)
        store = TCPStore(host, port, num_ranks, is_master=False, wait_for_workers=False)
        return cls(url, store, interface_of(_own_address(host, port)))

    def arrive(self, rank: int) -> None:
        """Says that this rank is there."""
        self._store.set(_name(rank), "here")

    def are_there(self, ranks: Iterable[int]) -> bool:
        """Whether all those have arrived."""
        return bool(self._store.check([_name(rank) for rank in ranks]))

    def join(self, rank: int, num_ranks: int) -> TorchRanks:
        """The group: NCCL among GPUs, gloo among CPUs. Returns when all have joined."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", self._interface)
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())  # its own one, of those of a machine or of one
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=self._store, rank=rank, world_size=num_ranks, timeout=_NEVER)
        return TorchRanks()


def interface_of(address: str) -> str:
    """The network interface that has that IPv4 address. Raises OSError when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe, _GET_INTERFACE_ADDRESS, asked)
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise OSError(f"no network interface has the address {address}")


def _own_address(host: str, port: int) -> str:
    """By which this machine reaches that one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _name(rank: int) -> str:
    return f"rank-{rank}"
