"""From a checkpoint to a model that may serve: its weights packed by a backend that was checked. Knows no sequence."""

import functools
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gemline.engine.checkpoint import revision
from gemline.engine.config import Gemma2Config
from gemline.engine.memory import give_back_freed_memory
from gemline.engine.memory_plan import MemoryPlan, plan_memory
from gemline.engine.model import Gemma2Model
from gemline.engine.options import EngineOptions, Quantization
from gemline.engine.part import Part
from gemline.engine.pools import least_free_bytes
from gemline.engine.ranks import Ranks
from gemline.engine.weights import Weights, load_weights
from gemline.errors import ConfigurationError
from gemline_kernels import choose, selfcheck
from gemline_kernels.backend import Backend
from gemline_kernels.cpu.build import cpu_flags
from gemline_kernels.scales import Scales

_BFLOAT16_BACKENDS = ("native", "triton")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # a CPU without them computes bfloat16 slower than float32, in oneDNN

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded, and what that cost."""

    backend: str
    dtype: str
    quantization: str
    kv_dtype: str  # of keys and values
    num_weight_bytes: int  # packed
    duration_s: float

    def __str__(self) -> str:
        weights = "" if self.quantization == "none" else f", {self.quantization} weights"
        size = f"{self.num_weight_bytes / 2**20:.1f} MiB"
        keys_values = "" if self.kv_dtype == self.dtype else f", {self.kv_dtype} keys and values"
        return f"backend {self.backend}, {self.dtype}{weights}{keys_values}, {size} packed in {self.duration_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and the options with nothing left to choose."""

    model: Gemma2Model
    options: EngineOptions
    revision: str
    report: LoadReport


def load_model(
    model_dir: Path, options: EngineOptions, backend: Backend | None = None, ranks: Ranks | None = None
) -> Loaded:
    """The checkpoint's weights, packed by the backend, or by this machine's best when none is given.

    Among `ranks` it is this one's part of them.

    Raises CheckpointError when the checkpoint cannot be served as it is, ConfigurationError when this machine's GPU is
    too old, when the backend has no kernels for the model, and when it computes something wrong.
    """
    begun_s = time.perf_counter()
    backend = backend or _this_machines_best()
    options = options.for_device(backend.device.type)
    config = Gemma2Config.load(model_dir)
    part = None if ranks is None else Part(config, ranks.rank, ranks.size)
    weights = load_weights(model_dir, config, options.quantization, part)
    dtype = choose_dtype(options.dtype, weights.stored_dtypes, backend.name)
    try:
        backend.check_shape(getattr(torch, dtype), config.head_dim, options.block_size)
    except ValueError as error:
        raise ConfigurationError(f"{model_dir}: {error}") from None
    if options.quantization == "fp8" and backend.device.type == "cpu":
        _log.warning("fp8 weights are slow on a CPU, which makes them float32 for each product: int8 is for speed")
    if options.kv_dtype == "fp8" and backend.device.type == "cpu":
        _log.warning("fp8 keys and values are slow on a CPU, which makes them float32 for each step: they save memory")
    options = replace(options, dtype=dtype, kv_scales=_kv_scales(model_dir, weights, options))
    _log.info("%s: %s", model_dir, _plan(config, options, backend.device, ranks))
    _check(backend, dtype, options.quantization, config)
    model = Gemma2Model(config, weights, getattr(torch, dtype), backend, options.quantization, ranks)
    give_back_freed_memory()
    report = LoadReport(
        backend.name,
        dtype,
        options.quantization,
        options.cache_dtype,
        model.weights.num_bytes,
        round(time.perf_counter() - begun_s, 3),
    )
    _log.info("%s: %s", model_dir, report)
    if told := str(weights.repacking):
        _log.info("%s: %s", model_dir, told)
    return Loaded(model, options, revision(model_dir), report)


def _plan(config: Gemma2Config, options: EngineOptions, device: torch.device, ranks: Ranks | None) -> MemoryPlan:
    free_bytes, num_ranks = least_free_bytes(options, device, ranks), 1 if ranks is None else ranks.size
    if is_gpu := device.type != "cpu":
        return plan_memory(config, options, free_bytes, num_ranks=num_ranks, is_gpu=is_gpu)
    return plan_memory(config, options, free_bytes // num_ranks, num_ranks=num_ranks)  # they share this machine


def _kv_scales(model_dir: Path, weights: Weights, options: EngineOptions) -> tuple[Scales, ...]:
    """Those that were asked for, else the checkpoint's own; empty where they are of no use."""
    if options.kv_scales or not (scales := weights.kv_scales()):
        return options.kv_scales
    if options.kv_dtype != "fp8":
        _log.info("%s: has scales for keys and values in fp8, which kv_dtype %s ignores", model_dir, options.kv_dtype)
        return ()
    _log.info("%s: keys and values are in fp8 by the checkpoint's own scales", model_dir)
    return scales


def _this_machines_best() -> Backend:
    try:
        return choose.choose()
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


@functools.lru_cache(maxsize=64)
def _check(backend: Backend, dtype: str, quantization: Quantization, config: Gemma2Config) -> None:
    """Once in a process: the same machine computes the same again. A failure is found anew each time."""
    try:
        selfcheck.check(
            backend,
            getattr(torch, dtype),
            quantization,
            scale=config.attention_scale,
            cap=config.attn_logit_softcapping,
            window=config.sliding_window if config.num_local_layers else None,
            head_dim=config.head_dim,
        )
    except selfcheck.SelfCheckFailedError as error:
        raise ConfigurationError(f"the {backend.name} backend computes wrong on this machine: {error}") from error


def choose_dtype(asked: str, stored: frozenset[torch.dtype], backend_name: str) -> str:
    """What "auto" stands for: bfloat16 if all is stored in it and this machine computes it fast, else float32."""
    if asked != "auto":
        return asked
    is_fast = backend_name in _BFLOAT16_BACKENDS or bool(_BFLOAT16_FLAGS & cpu_flags())
    return "bfloat16" if is_fast and stored == {torch.bfloat16} else "float32"
