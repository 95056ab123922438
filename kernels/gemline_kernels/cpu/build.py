"""Compiles the folder's C++ into one shared library, cached under a name that says what it was made from and for.

    python -m gemline_kernels.cpu.build      # builds, unless it is there, and prints the library's path

The library shares torch's OpenMP threads: it is linked against the very libgomp that torch brings along, since two
pools of threads would fight for the cores.
"""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = Path(__file__).parent
COMPILE_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c++17", "-fno-math-errno", "-Wall", "-Wextra")
_COMPILERS = ("g++", "c++", "clang++")
_ELF_HEADER = struct.Struct("<40xQ10xHH2x")  # of 64-bit ELF: where the section table is, how wide and how long
_LAST_LINES = 12  # of the compiler's output, in an error
_TIMEOUT_S = 300.0


class NativeUnavailableError(RuntimeError):
    """The native library cannot be had here; the message says why, in words for a log line."""


class _Names(NamedTuple):
    """Of the library: what a cached one must match at least, and what a new one is called."""

    pattern: str
    name: str


def cache_dir() -> Path:
    """$GEMLINE_CACHE, $XDG_CACHE_HOME/gemline or ~/.cache/gemline. It may not be there yet."""
    if own := os.environ.get("GEMLINE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemline"


def find_compiler() -> str | None:
    """$CXX, g++, c++ or clang++: the first that is there."""
    wanted = os.environ.get("CXX")
    return next((found for name in ((wanted,) if wanted else _COMPILERS) if (found := shutil.which(name))), None)


def cpu_flags() -> frozenset[str]:
    """The kernel's names of what this CPU can do; empty where /proc/cpuinfo has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def build(sources: Path = SOURCES, cache: Path | None = None, compiler: str | None = None) -> Path:
    """Path of the library made from the *.cpp of `sources`; compiles it unless it is in the cache.

    Without a compiler a library that an earlier compiler made from the same sources, for such a CPU, will do.
    Raises NativeUnavailableError: no compiler, a source that does not compile (with the compiler's last lines), a
    cache that cannot be written.
    """
    cache = cache or cache_dir()
    compiler = compiler or find_compiler()
    if found := find_library(sources, cache, compiler):
        return found
    if compiler is None:
        raise NativeUnavailableError(f"no C++ compiler ({os.environ.get('CXX') or ', '.join(_COMPILERS)}) on the PATH")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as scratch:
            library = cache / _names(sources, compiler).name
            made = _compile(compiler, sources, Path(scratch))
            made.replace(library)  # atomic: another process sees the old one, or this one whole
    except OSError as error:
        raise NativeUnavailableError(f"cannot build the native library in {cache}: {error}") from error
    return library


def find_library(sources: Path = SOURCES, cache: Path | None = None, compiler: str | None = None) -> Path | None:
    """What `build` would give without compiling; None where it would compile, or fail."""
    cache = cache or cache_dir()
    compiler = compiler or find_compiler()
    names = _names(sources, compiler)
    library = cache / names.name
    if library.is_file() and _is_whole(library):
        return library
    return _newest(cache, names.pattern) if compiler is None else None


def _names(sources: Path, compiler: str | None) -> _Names:
    what = hashlib.sha256()
    for source in sorted((*sources.glob("*.cpp"), *sources.glob("*.h"))):
        what.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    what.update(repr((COMPILE_FLAGS, sorted(cpu_flags()), _libgomp())).encode())
    version = _run((compiler, "--version")) if compiler else ""
    by_whom = hashlib.sha256(f"{compiler}\n{version}".encode()).hexdigest()[:8]
    stem = f"kernels-{what.hexdigest()[:16]}"
    return _Names(f"{stem}-*.so", f"{stem}-{by_whom}.so")


def _newest(cache: Path, pattern: str) -> Path | None:
    whole = (path for path in cache.glob(pattern) if _is_whole(path))
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def _is_whole(library: Path) -> bool:
    """Whether the file reaches to the end of its section table, its last part: to load less kills the process."""
    data = library.read_bytes()
    if len(data) < _ELF_HEADER.size:
        return False
    table, entry_size, num_entries = _ELF_HEADER.unpack_from(data)
    return bool(table + entry_size * num_entries <= len(data))


def _libgomp() -> str | None:
    """The OpenMP runtime inside torch's wheel, which this process has loaded already."""
    package = Path(torch.__file__).parent
    bundled = sorted((*(package / "lib").glob("libgomp*.so*"), *(package.parent / "torch.libs").glob("libgomp*.so*")))
    return str(bundled[0]) if bundled else None


def _compile(compiler: str, sources: Path, scratch: Path) -> Path:
    files = sorted(sources.glob("*.cpp"))
    objects = [scratch / f"{file.stem}.o" for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [
            (compiler, *COMPILE_FLAGS, "-c", str(file), "-o", str(made))
            for file, made in zip(files, objects, strict=True)
        ]
        list(pool.map(_run, commands))
    library, libgomp = scratch / "kernels.so", _libgomp()
    # The path of torch's own comes first, so that the compiler's -lgomp is not needed and therefore not linked.
    openmp = (libgomp, f"-Wl,-rpath,{Path(libgomp).parent}", "-Wl,--as-needed") if libgomp else ()
    _run((compiler, "-shared", "-fopenmp", *map(str, objects), *openmp, "-o", str(library)))
    return library


def _run(command: Sequence[str]) -> str:
    """What the command prints. Raises NativeUnavailableError with the last lines of it when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LAST_LINES:])
        raise NativeUnavailableError(f"{' '.join(command)} failed:\n{last}")
    return done.stdout


def main() -> None:
    """Prints the library's path; ends with status 1 and the reason when there is none."""
    from gemline_kernels.cpu.native import missing_cpu_flags  # which imports this module

    if missing := missing_cpu_flags():
        sys.exit(f"this CPU lacks {', '.join(missing)}")
    try:
        library = build()
    except NativeUnavailableError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{library}\n")


if __name__ == "__main__":
    main()
