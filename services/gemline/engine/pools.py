"""How large the pools of keys and values are, on every rank alike: a block's number means the same on each."""

import torch

from gemline.engine.blocks import BlockCounts
from gemline.engine.config import LayerKind
from gemline.engine.kv_cache import block_bytes
from gemline.engine.memory import free_memory_bytes, size_pools
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.ranks import Ranks


def pools_of(
    part: Part, options: EngineOptions, dtype: torch.dtype, device: torch.device, ranks: Ranks | None
) -> BlockCounts:
    """The blocks of both pools, by the rank that has least memory free. Raises ConfigurationError as `size_pools`."""
    per_block = (
        block_bytes(part.own_config, kind, options.block_size, dtype) for kind in (LayerKind.GLOBAL, LayerKind.LOCAL)
    )
    free_bytes = least_free_bytes(options, device, ranks)
    return size_pools(options, part.own_config, BlockCounts(*per_block), free_bytes, is_gpu=device.type != "cpu")


def least_free_bytes(options: EngineOptions, device: torch.device, ranks: Ranks | None) -> int:
    """What the rank that has least could still take of its device. All ranks ask at a time."""
    free_bytes = free_memory_bytes(device, options.gpu_share)
    if ranks is None:
        return free_bytes
    return min(int(it) for it in ranks.gather(torch.tensor(free_bytes)))
