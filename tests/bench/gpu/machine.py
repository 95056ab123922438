"""What a figure depends on besides the code: the GPU, what its maker says of it, versions, clocks."""

import datetime
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

_QUERIED = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem",
    "power.limit", "temperature.gpu", "mig.mode.current",
)  # fmt: skip


class Datasheet(NamedTuple):
    """Memory bytes and dense bfloat16 operations a second."""

    bytes_per_s: float
    flops_per_s: float


_DATASHEETS = {
    "H200 NVL": Datasheet(4.8e12, 835e12),
    "H200": Datasheet(4.8e12, 990e12),
    "H100 PCIe": Datasheet(2.0e12, 756e12),
    "H100 NVL": Datasheet(3.9e12, 835e12),
    "H100": Datasheet(3.35e12, 990e12),
}


def datasheet(name: str) -> Datasheet | None:
    """Of the GPU of that name; None of an unknown one."""
    return next((sheet for known, sheet in _DATASHEETS.items() if known in name), None)


def circumstances() -> dict[str, Any]:
    """All that does not change in a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": gpu(),
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "triton", "transformers", "numpy")},
    }


def gpu() -> dict[str, str]:
    """As nvidia-smi has it; {} where there is none."""
    answer = _output("nvidia-smi", f"--query-gpu={','.join(_QUERIED)}", "--format=csv,noheader", "--id=0")
    return dict(zip(_QUERIED, map(str.strip, answer.split(",")), strict=False)) if answer else {}


def file_name(about: dict[str, Any]) -> str:
    """<gpu>-<date>.json"""
    name = re.sub(r"[^a-z0-9]+", "-", about["gpu"].get("name", "no gpu").lower())
    return f"{name}-{about['date'][:10]}.json"


def _output(*command: str) -> str:
    """Empty when it failed."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
