"""How an engine is to run: its budgets, sizes and dtype, checked. Knows no torch and no file."""

from dataclasses import dataclass
from typing import Literal, get_args

from gemline.errors import ConfigurationError

Quantization = Literal["none", "int8", "int4"]  # of the weight matrices

DTYPES = ("auto", "float32", "bfloat16")
_POSITIVE = ("block_size", "max_batch_tokens", "max_running", "max_waiting")
_POSITIVE_OR_NONE = ("num_kv_blocks", "num_threads")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Raises ConfigurationError, which names the option and its value, when one cannot be used."""

    dtype: str = "float32"  # of weights, activations, keys and values; auto: what suits checkpoint and machine
    quantization: Quantization = "none"
    num_kv_blocks: int | None = None  # blocks of the global pool; None: from the memory that is free at start
    block_size: int = 16  # positions in a block
    max_batch_tokens: int = 512  # of one step, decode and prefill together
    max_running: int = 64  # sequences that own blocks at a time
    max_waiting: int = 1024  # sequences that may queue behind them
    prefix_cache: bool = True  # keep full blocks when their sequences go, for requests that begin alike
    num_threads: int | None = None  # of torch; None: one for each core this process may use

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
        for name in (*_POSITIVE, *_POSITIVE_OR_NONE):
            value = getattr(self, name)
            if value is None and name in _POSITIVE_OR_NONE:
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, is {value!r}")
