"""How an engine is to run: its budgets, sizes and dtype, checked. Knows no torch and no file."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from gemline.engine.kv_form import FLOAT8
from gemline.errors import ConfigurationError
from gemline_kernels.scales import Scales

KvDtype = Literal["auto", "fp8"]  # of keys and values in a cache
Quantization = Literal["none", "int8", "int4", "fp8"]  # of the weight matrices

DTYPES = ("auto", "float32", "bfloat16")
_POSITIVE = ("max_waiting", "tensor_parallel")
_POSITIVE_OR_NONE = ("num_kv_blocks", "num_threads")
# A GPU's step is as long with 256 tokens as with one, and its kernels read keys in tiles of a block at most.
_OF_CPU = {"block_size": 16, "max_batch_tokens": 512, "max_running": 64}
_OF_GPU = {"block_size": 64, "max_batch_tokens": 2048, "max_running": 256}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Raises ConfigurationError, which names the option and its value, when one cannot be used."""

    dtype: str = "float32"  # of weights and activations; auto: what suits checkpoint and machine
    quantization: Quantization = "none"
    kv_dtype: KvDtype = "auto"  # of keys and values; auto: as dtype
    kv_scales: tuple[Scales, ...] = ()  # of each layer of an fp8 cache; empty: a checkpoint's own, or they are measured
    num_kv_blocks: int | None = None  # blocks of the global pool; None: from the memory that is free at start
    block_size: int = 0  # positions in a block; 0, here and below: what suits the device
    max_batch_tokens: int = 0  # of one step, decode and prefill together
    max_running: int = 0  # sequences that own blocks at a time
    max_waiting: int = 1024  # sequences that may queue behind them
    prefix_cache: bool = True  # keep full blocks when their sequences go, for requests that begin alike
    tenant_cache_share: float = 0.5  # of either pool, that one tenant may keep cached while others want room
    num_threads: int | None = None  # of torch; None: one for each core this process may use
    gpu_share: float = 1.0  # of a GPU's memory, for weights, keys and values and all else
    tensor_parallel: int = 1  # processes, each with a part of the model and a GPU or a share of the cores

    def __post_init__(self) -> None:
        if self.dtype == "float16":
            raise ConfigurationError(
                "dtype float16 cannot be served: Gemma 2's activations exceed its largest value, 65504;"
                " use bfloat16, which takes the same memory, or float32"
            )
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, is {self.dtype!r}")
        if self.quantization not in get_args(Quantization):
            names = ", ".join(get_args(Quantization))
            raise ConfigurationError(f"quantization must be one of {names}, is {self.quantization!r}")
        if self.kv_dtype not in get_args(KvDtype):
            raise ConfigurationError(
                f"kv_dtype must be one of {', '.join(get_args(KvDtype))}, is {self.kv_dtype!r}", param="kv_dtype"
            )
        for name in (*_POSITIVE, *_POSITIVE_OR_NONE):
            value = getattr(self, name)
            if value is None and name in _POSITIVE_OR_NONE:
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, is {value!r}")
        for name in ("gpu_share", "tenant_cache_share"):
            if not 0.0 < (share := getattr(self, name)) <= 1.0:
                raise ConfigurationError(f"{name} must be above 0 and at most 1, is {share!r}")
        for name in _OF_CPU:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigurationError(
                    f"{name} must be a whole number of at least 1, or 0 for what suits the device, is {value!r}"
                )

    @property
    def cache_dtype(self) -> str:
        """Of keys and values, by `KvForm`'s names; "auto" only where dtype is."""
        return FLOAT8 if self.kv_dtype == "fp8" else self.dtype

    def for_device(self, kind: str) -> Self:
        """The same with every size decided; `kind` is torch's name of the device's type."""
        suitable = _OF_CPU if kind == "cpu" else _OF_GPU
        return replace(
            self,
            block_size=self.block_size or suitable["block_size"],
            max_batch_tokens=self.max_batch_tokens or suitable["max_batch_tokens"],
            max_running=self.max_running or suitable["max_running"],
        )
