"""A process and all that it started, as /proc tells: who they are and what memory they hold."""

import os
from collections import defaultdict
from pathlib import Path


def tree(root_pid: int) -> list[int]:
    """That process and its descendants, those that still are."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_pid = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children[parent_pid].append(int(stat.parent.name))
    pids = [root_pid]
    for pid in pids:
        pids.extend(children[pid])
    return pids


def memory_bytes(pid: int) -> int:
    """What the process holds, each shared page divided by its users (PSS); 0 when it has gone.

    The weights of a file that is mapped count as a page of anybody else's does.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


class Share:
    """How much of the machine's time others than a tree of processes took, from its making until it is asked."""

    def __init__(self, root_pid: int) -> None:
        self._pids = tree(root_pid)
        self._before_s = self._times_s()

    def of_others(self) -> float:
        """Between 0 and 1, of all cores; what a hypervisor took is with it."""
        whole_s, busy_s, own_s = (now - before for now, before in zip(self._times_s(), self._before_s, strict=True))
        return max(0.0, busy_s - own_s) / whole_s if whole_s else 0.0

    def _times_s(self) -> tuple[float, float, float]:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = fields[3] + fields[4]
        ticks_s = 1 / os.sysconf("SC_CLK_TCK")
        return sum(fields) * ticks_s, (sum(fields) - idle) * ticks_s, sum(cpu_s(pid) for pid in self._pids)


def cpu_s(pid: int) -> float:
    """CPU time that the process has used; 0 when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
