"""Building and caching the native library, with sources of a few lines."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemline_kernels.cpu.build import NativeUnavailableError, build, cache_dir, find_compiler
from gemline_kernels.cpu.native import NEEDED_CPU_FLAGS, library, load, missing_cpu_flags

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.h").write_text("constexpr int ANSWER = 42;\n")
    (folder / "one.cpp").write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    (folder / "two.cpp").write_text('#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n')
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "not there yet" / "cache"


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_all_sources_become_one_library_that_is_built_once(sources: Path, cache: Path) -> None:
    path = build(sources, cache)
    made = path.stat()
    assert ctypes.CDLL(str(path)).answer() == 42
    assert ctypes.CDLL(str(path)).threads() >= 1
    assert build(sources, cache) == path
    assert path.stat().st_ino == made.st_ino
    assert list(cache.iterdir()) == [path]


@needs_compiler
@pytest.mark.parametrize("changed", ["one.cpp", "answer.h"])
def test_a_changed_source_or_header_is_another_library(sources: Path, cache: Path, changed: str) -> None:
    before = build(sources, cache)
    text = (sources / changed).read_text()
    (sources / changed).write_text(text.replace("ANSWER;", "ANSWER + 1;").replace("42", "43"))
    after = build(sources, cache)
    assert before != after
    assert [ctypes.CDLL(str(path)).answer() for path in (before, after)] == [42, 43]


@needs_compiler
def test_the_library_uses_the_threads_that_torch_uses(sources: Path, cache: Path) -> None:
    path = build(sources, cache)
    show = "import sys, ctypes, torch; torch.set_num_threads(3); print(ctypes.CDLL(sys.argv[1]).threads())"
    shown = subprocess.run([sys.executable, "-c", show, str(path)], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["3"]
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    ctypes.CDLL(str(path))
    assert {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line
    } == mapped


@needs_compiler
def test_two_processes_may_build_at_once(sources: Path, cache: Path) -> None:
    code = "import sys; from pathlib import Path; from gemline_kernels.cpu.build import build;"
    code += "print(build(Path(sys.argv[1]), Path(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(sources), str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert ctypes.CDLL(paths.pop()).answer() == 42
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_a_source_that_does_not_compile_is_reported_with_the_compilers_last_words(sources: Path, cache: Path) -> None:
    (sources / "three.cpp").write_text("int broken( {\n")
    with pytest.raises(NativeUnavailableError, match=r"(?s)three\.cpp.*error"):
        build(sources, cache)
    assert list(cache.iterdir()) == []


def test_a_compiler_that_fails_is_reported_with_its_words(sources: Path, cache: Path, tmp_path: Path) -> None:
    compiler = fake_compiler(
        tmp_path, 'if [ "$1" = --version ]; then echo fake 1; else echo no licence >&2; exit 3; fi'
    )
    with pytest.raises(NativeUnavailableError, match="no licence"):
        build(sources, cache, compiler)


def test_a_compiler_that_cannot_even_start_is_reported(sources: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match="does not run"):
        build(sources, cache, str(tmp_path / "nowhere"))


def test_no_compiler_is_reported_with_what_was_looked_for(
    sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeUnavailableError, match=r"no C\+\+ compiler \(g\+\+, c\+\+, clang\+\+\)"):
        build(sources, cache)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeUnavailableError, match="no-such-compiler"):
        build(sources, cache)


@needs_compiler
def test_a_cached_library_does_without_a_compiler(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(sources, cache)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert build(sources, cache) == path


@needs_compiler
def test_a_cache_that_cannot_be_written_is_reported(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeUnavailableError, match="cannot build the native library in"):
        build(sources, tmp_path / "file" / "cache")


@needs_compiler
def test_a_cached_library_that_was_cut_short_is_built_again(sources: Path, cache: Path) -> None:
    path = build(sources, cache)
    path.write_bytes(path.read_bytes()[:1000])
    assert load(sources, cache).answer() == 42


@needs_compiler
def test_the_package_builds_and_prints_its_own_library(tmp_path: Path) -> None:
    if missing_cpu_flags():
        pytest.skip("the package's sources need AVX-512")
    printed = subprocess.run(
        [sys.executable, "-m", "gemline_kernels.cpu.build"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(printed.stdout.strip()).is_file()


def test_a_cpu_that_lacks_something_is_told_what() -> None:
    if missing := missing_cpu_flags():
        with pytest.raises(NativeUnavailableError, match=missing[0]):
            library()
    assert set(missing_cpu_flags()) <= NEEDED_CPU_FLAGS


def test_the_cache_is_where_gemline_keeps_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEMLINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "gemline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "gemline"
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
