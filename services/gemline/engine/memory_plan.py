"""What a model will take of this machine's memory, before any of it is loaded. Arithmetic; reads nothing."""

from contextlib import suppress
from dataclasses import dataclass, replace

from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.footprint import CacheForm, Footprint, WeightForm
from gemline.engine.kv_form import FLOAT8
from gemline.engine.memory import size_pools
from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError

_GIB = 2**30
_FORMS: dict[str, CacheForm] = {"float32": "f32", "bfloat16": "bf16", FLOAT8: "fp8"}
_SMALLER: tuple[WeightForm, ...] = ("fp8", "int8", "int4")
_DEGREES = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Of one rank."""

    footprint: Footprint
    blocks: BlockCounts
    block_size: int
    free_bytes: int  # before anything is loaded

    @property
    def pool_bytes(self) -> dict[LayerKind, int]:
        """Keys and values of both pools."""
        numbers = {LayerKind.GLOBAL: self.blocks.num_global, LayerKind.LOCAL: self.blocks.num_local}
        of_token = self.footprint.token_bytes
        return {kind: number * self.block_size * of_token(kind) for kind, number in numbers.items()}

    def __str__(self) -> str:
        parts = "" if self.footprint.num_ranks == 1 else f", of each of {self.footprint.num_ranks} ranks"
        pools = self.pool_bytes
        return (
            f"memory{parts}: {_size(self.footprint.weight_bytes)} {self.footprint.weights} weights"
            f" of {_size(self.free_bytes)} free; {self.footprint.cache} keys and values of"
            f" {self.blocks.num_global * self.block_size} tokens in global layers ({_size(pools[LayerKind.GLOBAL])}),"
            f" {self.blocks.num_local * self.block_size} in local ones ({_size(pools[LayerKind.LOCAL])})"
        )


def plan_memory(
    config: Gemma2Config, options: EngineOptions, free_bytes: int, *, num_ranks: int = 1, is_gpu: bool = False
) -> MemoryPlan:
    """What weights and pools will take of each rank's free bytes; nothing in `options` is left to choose.

    Raises ConfigurationError when weights and one context do not fit, and says what would; and as `size_pools` does.
    """
    footprint = _footprint(config, options, num_ranks)
    try:
        blocks = _pools(footprint, options, free_bytes, is_gpu=is_gpu)
    except ConfigurationError:
        if options.num_kv_blocks is not None and footprint.weight_bytes < free_bytes:
            raise  # the pool that was asked for is what is wrong
        context = config.max_position_embeddings
        would = ", ".join(_what_would(footprint, options, free_bytes, is_gpu=is_gpu)) or "nothing; it needs more memory"
        weights, of_context = _size(footprint.weight_bytes), _size(footprint.sequence_bytes(context))
        raise ConfigurationError(
            f"{weights} of {footprint.weights} weights, and {of_context} for one context of {context} tokens,"
            f" do not fit the {_size(free_bytes)} that are free. What would: {would}"
        ) from None
    return MemoryPlan(footprint, blocks, options.block_size, free_bytes)


def _footprint(config: Gemma2Config, options: EngineOptions, num_ranks: int) -> Footprint:
    dtype = _FORMS[options.dtype]
    weights: WeightForm = dtype if options.quantization == "none" else options.quantization
    return Footprint(config, weights, _FORMS[options.cache_dtype], num_ranks)


def _pools(footprint: Footprint, options: EngineOptions, free_bytes: int, *, is_gpu: bool) -> BlockCounts:
    left_bytes = max(0, free_bytes - footprint.weight_bytes)
    kinds = (LayerKind.GLOBAL, LayerKind.LOCAL)
    of_block = BlockCounts(*(options.block_size * footprint.token_bytes(kind) for kind in kinds))
    return size_pools(options, footprint.own, of_block, left_bytes, is_gpu=is_gpu)


def _what_would(footprint: Footprint, options: EngineOptions, free_bytes: int, *, is_gpu: bool) -> list[str]:
    """Smaller weights on as many ranks; then more ranks, where each has a GPU of its own; smaller keys and values."""
    found: list[str] = []
    others = {f"--quantization {form}": replace(footprint, weights=form) for form in _SMALLER}
    if is_gpu:
        others |= {f"--tensor-parallel {number}": replace(footprint, num_ranks=number) for number in _DEGREES}
    for name, other in others.items():
        with suppress(ConfigurationError):  # as little does it
            _pools(other, options, free_bytes, is_gpu=is_gpu)
            if other.weight_bytes < footprint.weight_bytes:
                found.append(f"{name} ({_size(other.weight_bytes)})")
    narrow = replace(footprint, cache="fp8")
    with suppress(ConfigurationError):
        _pools(narrow, options, free_bytes, is_gpu=is_gpu)
        context = footprint.config.max_position_embeddings
        found.append(f"--kv-cache-dtype fp8 ({_size(narrow.sequence_bytes(context))} for the context)")
    return found


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.1f} MiB"
