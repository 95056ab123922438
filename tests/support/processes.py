"""Which processes come from a process, and whether they have gone. Reads /proc."""

import time
from collections.abc import Iterable
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
