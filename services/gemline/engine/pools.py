"""A model's cache: how large its pools are, on every rank alike, as a block's number means the same on each."""

import torch

from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.kv_cache import DTYPES, KvCache, block_bytes
from gemline.engine.kv_scales import Forward, measure_scales
from gemline.engine.memory import free_memory_bytes, size_pools
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.ranks import Ranks
from gemline_kernels.scales import Scales


def make_cache(model: Forward, part: Part, options: EngineOptions, ranks: Ranks | None) -> KvCache:
    """For that part of the model, which is asked for its scales where they are needed and not known. All ranks ask at a
    time.

    Nothing in `options` is left to choose. Raises ConfigurationError as `size_pools`, CheckpointError as
    `measure_scales`.
    """
    config, dtype = part.own_config, DTYPES[options.cache_dtype]
    scales: tuple[Scales, ...] = ()
    if options.kv_dtype == "fp8":
        scales = options.kv_scales or measure_scales(model, config, options, ranks)
    blocks = _num_blocks(config, options, dtype, model.device, ranks)
    return KvCache(config, *blocks, options.block_size, dtype, model.device, scales)


def _num_blocks(
    config: Gemma2Config, options: EngineOptions, dtype: torch.dtype, device: torch.device, ranks: Ranks | None
) -> BlockCounts:
    """Of both pools, by the rank that has least memory free."""
    per_block = (block_bytes(config, kind, options.block_size, dtype) for kind in (LayerKind.GLOBAL, LayerKind.LOCAL))
    free_bytes = least_free_bytes(options, device, ranks)
    return size_pools(options, config, BlockCounts(*per_block), free_bytes, is_gpu=device.type != "cpu")


def least_free_bytes(options: EngineOptions, device: torch.device, ranks: Ranks | None) -> int:
    """What the rank that has least could still take of its device. All ranks ask at a time."""
    free_bytes = free_memory_bytes(device, options.gpu_share)
    if ranks is None:
        return free_bytes
    return min(int(it) for it in ranks.gather(torch.tensor(free_bytes)))
