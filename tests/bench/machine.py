"""What a figure depends on besides the code: the CPU and what it can do at most, versions, how busy the machine is."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.cpu_linear import measure_peaks
from bench.peers import Peers

from gemline_kernels.cpu.build import NativeUnavailableError

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
    """Operations and reads a second at most, of all cores; {} where the native library cannot run."""
    try:
        most = measure_peaks(budget_s=2.0)
    except NativeUnavailableError:
        return {}
    return {"bf16_gflops": most.bf16, "int8_gops": most.vnni, "read_gbytes": most.bytes}


def _output(*command: str) -> str:
    """What it wrote, anywhere; empty when it failed."""
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
