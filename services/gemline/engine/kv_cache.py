"""The keys and values of all layers, in two pools of blocks: global layers and local ones. Knows no block's owner."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.kv_form import FLOAT8
from gemline_kernels.layers import KeysValues
from gemline_kernels.reference import write_kv
from gemline_kernels.scales import UNSCALED, Scales

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, FLOAT8: torch.float8_e4m3fn}  # by `KvForm`'s names


def block_bytes(config: Gemma2Config, kind: LayerKind, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block of that pool takes over all layers of its kind, keys and values."""
    per_slot = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize
    return config.num_layers_of(kind) * block_size * per_slot


class KvCache:
    """Two pools; block n of a pool belongs to every layer of that kind. Contents are undefined until written."""

    def __init__(
        self,
        config: Gemma2Config,
        num_global_blocks: int,
        num_local_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        scales: Sequence[Scales] = (),
    ) -> None:
        """`scales`: of each layer, of a cache of float8_e4m3fn; without them all are 1."""
        self.config = config
        self.block_size = block_size
        self.dtype = dtype
        self.scales = tuple(scales) or (UNSCALED,) * config.num_hidden_layers
        self.num_blocks = BlockCounts(num_global_blocks, num_local_blocks)
        num_blocks = {LayerKind.GLOBAL: num_global_blocks, LayerKind.LOCAL: num_local_blocks}
        self.pools = tuple(
            KeysValues(both[0], both[1], of_layer)
            for kind, of_layer in zip(config.layer_kinds, self.scales, strict=True)
            for both in (torch.empty((2, *self._pool_shape(num_blocks[kind])), dtype=dtype, device=device),)
        )  # of each layer

    def layer(self, layer: int) -> KeysValues:
        """The whole pool of one layer: keys_NSGK and values_NSGK, to be written through, and their scales."""
        return self.pools[layer]

    def write(self, layer: int, slots_T: torch.Tensor, keys_TGK: torch.Tensor, values_TGK: torch.Tensor) -> None:
        """Puts one token's keys and values, on whatever device, into each slot, as the cache stores them."""
        keys_NSGK, values_NSGK, scales = self.pools[layer]
        device = keys_NSGK.device
        write_kv(keys_TGK.to(device), values_TGK.to(device), keys_NSGK, values_NSGK, slots_T.to(device), scales)

    def read(self, layer: int, slots_T: torch.Tensor) -> KeysValues:
        """Copies of the keys_TGK and values_TGK in those slots, as they are stored."""
        keys_NSGK, values_NSGK, scales = self.pools[layer]
        at = slots_T.to(keys_NSGK.device)
        keys_TGK, values_TGK = (pool.flatten(0, 1).index_select(0, at) for pool in (keys_NSGK, values_NSGK))
        return KeysValues(keys_TGK, values_TGK, scales)

    def gather(self, layer: int, slots_T: torch.Tensor, heads: range, out_2TGK: torch.Tensor) -> None:
        """Copies the keys, then the values, in those slots and of those KV heads into a tensor of the cache's dtype.

        To a tensor where the cache is each byte is copied once.
        """
        for pool_NSGK, out_TGK in zip(self.pools[layer][:2], out_2TGK, strict=True):
            rows = pool_NSGK.flatten(0, 1)[:, heads.start : heads.stop]
            if rows.device == out_TGK.device:
                torch.index_select(rows, 0, slots_T.to(rows.device), out=out_TGK)
            else:
                out_TGK.copy_(rows.index_select(0, slots_T.to(rows.device)))

    def scatter(
        self, layer: int, slots_T: torch.Tensor, heads: range, data_2TGK: NDArray[np.uint8] | torch.Tensor
    ) -> None:
        """Writes keys, then values, into those slots and those KV heads; the others stay as they are.

        `data_2TGK` holds them as bytes in the cache's dtype, wherever they begin; a tensor is where the cache
        is. Each byte is copied once where the cache is in this memory.
        """
        for pool_NSGK, data_TGK in zip(self.pools[layer][:2], data_2TGK, strict=True):
            rows = pool_NSGK.flatten(0, 1)[:, heads.start : heads.stop].view(torch.uint8)
            if rows.is_cpu:  # torch's index_copy_ takes two to three times as long
                rows.numpy()[slots_T.numpy()] = data_TGK
            else:
                rows.index_copy_(0, slots_T.to(rows.device), _tensor(data_TGK).to(rows.device))

    @property
    def device(self) -> torch.device:
        """Where the pools are."""
        return self.pools[0].keys.device

    @property
    def is_in_this_memory(self) -> bool:
        """Whether the pools are where Python's other objects are, and not on an accelerator."""
        return self.pools[0].keys.is_cpu

    def _pool_shape(self, num_blocks: int) -> tuple[int, int, int, int]:
        return (num_blocks, self.block_size, self.config.num_key_value_heads, self.config.head_dim)


def _tensor(data: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data
    return torch.from_numpy(data if data.flags.writeable else data.copy())
