"""Memory that two processes map, without a name: its file descriptor is handed over a Unix socket.

Nothing of it is in /dev/shm or anywhere else, so nothing is left behind, however a process ends: the kernel frees the
memory with its last mapping. Its size is sealed: who maps it cannot be made to read where nothing is. Linux only.
"""

import fcntl
import mmap
import os
from typing import NamedTuple

from gemline.transfer.frames import TransferError

NAME = "gemline-kv"  # in /proc/*/maps
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


class SharedMemory(NamedTuple):
    """A mapping, and the file descriptor to hand over: the creator's to close."""

    memory: mmap.mmap
    fd: int


def create(num_bytes: int) -> SharedMemory:
    """New memory, which takes no room until it is written. Raises OSError."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
        return SharedMemory(mmap.mmap(fd, num_bytes), fd)
    except BaseException:
        os.close(fd)
        raise


def attach(fd: int, num_bytes: int) -> mmap.mmap:
    """The memory behind a file descriptor, which may be closed then. Raises TransferError when it is another one."""
    try:
        size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if size != num_bytes or seals & _seals() != _seals():
            raise TransferError(
                f"{size} bytes of shared memory with seals {seals:#x} came, expected {num_bytes} sealed"
            )
        return mmap.mmap(fd, num_bytes)
    except OSError as error:
        raise TransferError(f"shared memory cannot be mapped: {error.strerror or error}") from error


def _seals() -> int:
    return sum(getattr(fcntl, name) for name in _SEALS)
