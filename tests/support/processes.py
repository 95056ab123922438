"""Which processes come from a process, where they listen, and whether they have gone. Reads /proc."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    return parents


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`."""
    parents = _parents()
    found, frontier = [], {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found += sorted(frontier)
    return found


def gone(pids: Iterable[int], *, within_s: float) -> bool:
    """Whether all of them end within that time; a zombie has ended."""
    limit = time.monotonic() + within_s
    while living := set(pids) & set(_parents()):
        if time.monotonic() > limit:
            print("still there:", {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in living})
            return False
        time.sleep(0.05)
    return True


_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
_LISTENS = "0A"


def listens_beyond_this_machine(pid: int) -> bool:
    """Whether it has a TCP port that other machines can reach."""
    return any(not address.startswith(_LOOPBACK) for address in _listens_at(pid))


def ports(pid: int) -> list[int]:
    """The TCP ports it listens at."""
    return sorted(int(address.rpartition(":")[2], 16) for address in _listens_at(pid))


def _listens_at(pid: int) -> list[str]:
    """Its addresses as /proc has them: address:port, both in hexadecimal."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    addresses = {f"socket:[{row[9]}]": row[1] for row in rows if row[3] == _LISTENS}
    return [addresses[inode] for inode in _open_files(pid) if inode in addresses]


def num_open_files(pid: int) -> int:
    """File descriptors."""
    return len(_open_files(pid))


def num_threads(pid: int) -> int:
    """As the kernel counts them."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident_bytes(pid: int) -> int:
    """Memory that is really there, but for what it shares with others."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def _open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found
