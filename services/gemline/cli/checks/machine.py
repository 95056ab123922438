"""The machine under gemline: platform, processor, memory, ports, cache folder."""

import platform
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from gemline.cli.checks.check import Check, attempt, failure, ok, warning
from gemline.cores import num_cores

_LEAST_PYTHON = (3, 11)
_LEAST_MEMORY_GIB = 2.0
_LEAST_DISK_GIB = 1.0
_GIB = 2**30

# Flags of /proc/cpuinfo that make bfloat16 or int8 fast, by the name people know them by.
_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_tile": "amx",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "bf16": "bf16",
    "i8mm": "i8mm",
}


def checks(ports: dict[str, int], cache_dir: Path) -> list[Check]:
    """Every finding about this machine; `ports` are those that `gemline up` takes, by their option."""
    return [
        _python(),
        _platform(),
        attempt("cpu", lambda: cpu(Path("/proc/cpuinfo").read_text())),
        attempt("memory", memory),
        *(port(option, number) for option, number in ports.items()),
        attempt("cache folder", lambda: folder(cache_dir)),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < _LEAST_PYTHON:
        return failure("python", found, "gemline needs Python 3.11 or later")
    return ok("python", found)


def _platform() -> Check:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() != "Linux":
        return warning("platform", found, "only Linux is tested; elsewhere the client works, workers may not")
    return ok("platform", found)


def cpu(cpuinfo: str) -> Check:
    """Cores this process may use, and what they are good at; `cpuinfo` is the text of /proc/cpuinfo."""
    flags = set(_field(cpuinfo, "flags").split() or _field(cpuinfo, "Features").split())
    features = [name for flag, name in _FEATURES.items() if flag in flags]
    number = num_cores()
    cores = "1 core" if number == 1 else f"{number} cores"
    found = f"{cores}, {_field(cpuinfo, 'model name') or platform.machine()}: {' '.join(features) or 'no vector units'}"
    if number < 2:
        return warning("cpu", found, "gateway and engine share one core: answers will be slow")
    return ok("cpu", found)


def memory() -> Check:
    """What is free for weights and KV, control groups counted in."""
    from gemline.engine.memory import free_memory_bytes

    free_gib = free_memory_bytes() / _GIB
    if free_gib < _LEAST_MEMORY_GIB:
        return warning(
            "memory", f"{free_gib:.1f} GiB free", "a full stack wants 2 GiB and the weights; see --kv-blocks"
        )
    return ok("memory", f"{free_gib:.1f} GiB free")


def port(option: str, number: int) -> Check:
    """Whether a server could listen there."""
    name = f"port {number}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
            return ok(name, "free")
        except OSError as error:
            return warning(
                name, f"not free ({error.strerror})", f"give `gemline up` another {option}; 0 is any free one"
            )


def folder(path: Path) -> Check:
    """Whether models and the ready file can be kept there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            free_gib = shutil.disk_usage(path).free / _GIB
    except OSError as error:
        return failure("cache folder", f"{path}: {error.strerror}", "make it writable, or set GEMLINE_CACHE")
    found = f"{path}, {free_gib:.1f} GiB free"
    if free_gib < _LEAST_DISK_GIB:
        return warning("cache folder", found, "make room: downloaded models go there")
    return ok("cache folder", found)


def _field(cpuinfo: str, name: str) -> str:
    """The first processor's entry of that name."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
