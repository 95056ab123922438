"""The compiled library, loaded once: its functions are called with raw addresses and sizes."""

import ctypes
import functools
from pathlib import Path

from gemline_kernels.cpu.build import SOURCES, NativeUnavailableError, build, cpu_flags

NEEDED_CPU_FLAGS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})


def missing_cpu_flags() -> list[str]:
    """What this CPU lacks for the native kernels; empty when they run."""
    return sorted(NEEDED_CPU_FLAGS - cpu_flags())


@functools.cache
def library() -> ctypes.CDLL:
    """The native library, built if need be. Raises NativeUnavailableError with the reason.

    Arguments are passed as they are: give ctypes.c_int64 and the like, or set a function's `argtypes` once.
    """
    if missing := missing_cpu_flags():
        raise NativeUnavailableError(f"this CPU lacks {', '.join(missing)}")
    return load()


def load(sources: Path = SOURCES, cache: Path | None = None, compiler: str | None = None) -> ctypes.CDLL:
    """The library that `build` makes of those. Raises NativeUnavailableError as it does, or if that does not load."""
    path = build(sources, cache, compiler)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"cannot load {path}: {error}") from error
