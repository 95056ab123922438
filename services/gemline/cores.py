"""How many cores this process may use: an affinity, such as a container's cpuset, may leave it few of a machine's."""

import os


def num_cores() -> int:
    """At least 1. A quota of CPU time is not counted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
