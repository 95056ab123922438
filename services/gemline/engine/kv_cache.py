"""The keys and values of all layers, in two pools of blocks: global layers and local ones. Knows no block's owner."""

import torch

from gemline.engine.config import Gemma2Config, LayerKind
from gemline_kernels.layers import KeysValues
from gemline_kernels.reference import write_kv


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
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.dtype = dtype
        num_blocks = {LayerKind.GLOBAL: num_global_blocks, LayerKind.LOCAL: num_local_blocks}
        self.pools = tuple(
            KeysValues(*torch.empty((2, *self._pool_shape(num_blocks[kind])), dtype=dtype, device=device))
            for kind in config.layer_kinds
        )  # of each layer

    def layer(self, layer: int) -> KeysValues:
        """The whole pool of one layer: keys_NSGK and values_NSGK, to be written through."""
        return self.pools[layer]

    def write(self, layer: int, slots_T: torch.Tensor, keys_TGK: torch.Tensor, values_TGK: torch.Tensor) -> None:
        """Puts one token's keys and values into each slot, cast to the cache's dtype."""
        write_kv(keys_TGK, values_TGK, *self.pools[layer], slots_T)

    def read(self, layer: int, slots_T: torch.Tensor) -> KeysValues:
        """Copies of the keys_TGK and values_TGK in those slots."""
        keys_NSGK, values_NSGK = self.pools[layer]
        return KeysValues(
            keys_NSGK.flatten(0, 1).index_select(0, slots_T), values_NSGK.flatten(0, 1).index_select(0, slots_T)
        )

    def _pool_shape(self, num_blocks: int) -> tuple[int, int, int, int]:
        return (num_blocks, self.block_size, self.config.num_key_value_heads, self.config.head_dim)
