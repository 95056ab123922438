"""What a figure depends on besides the code: the CPU and what it can do at most, versions, how busy the machine is."""

import datetime
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peers import Peers

_FLAGS = ("fma", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def circumstances(there: Peers) -> dict[str, Any]:
    """All that does not change in a run, as JSON holds it."""
    flags = _cpu("flags").split()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "versions": {
            "gemline": version("gemline"),
            "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
            "python": platform.python_version(),
            "torch": version("torch"),
            **there.versions(),
        },
    }


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu("flags").split())


def _cpu(field: str) -> str:
    """Of the first core; empty where /proc has no such field."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def peaks() -> dict[str, float]:
    """Multiply-adds and reads a second at most, of all cores, by a program compiled on the spot; {} without g++."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "peaks"
        source = Path(__file__).with_name("peaks.cpp")
        if not _output("g++", "-O3", "-march=native", "-fopenmp", "-std=c++17", str(source), "-o", str(program), "-v"):
            return {}
        lines = _output(str(program)).splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines)}


def _output(*command: str) -> str:
    """What it wrote, anywhere; empty when it failed."""
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
