"""The cache's arithmetic: what is written to a slot is read from it, and bytes are counted right."""

import pytest
import torch

from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.kv_cache import KvCache, block_bytes

CONFIG = Gemma2Config(num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=6)


def make_cache(dtype: torch.dtype = torch.float32) -> KvCache:
    return KvCache(CONFIG, num_global_blocks=7, num_local_blocks=3, block_size=4, dtype=dtype)


def test_each_kind_of_layer_has_a_pool_of_its_own_size() -> None:
    cache = make_cache()
    for layer in range(5):
        keys_NSGK, values_NSGK, _ = cache.layer(layer)
        assert keys_NSGK.shape == values_NSGK.shape == (3 if layer % 2 == 0 else 7, 4, 2, 6)


def test_what_is_written_to_slots_is_read_from_them() -> None:
    cache, slots_T = make_cache(), torch.tensor([11, 0, 5])
    written = {layer: torch.randn(2, 3, 2, 6) for layer in range(5)}
    for layer, (keys_TGK, values_TGK) in written.items():
        cache.write(layer, slots_T, keys_TGK, values_TGK)
    for layer, (keys_TGK, values_TGK) in written.items():
        read = cache.read(layer, slots_T)
        assert read.keys.equal(keys_TGK)
        assert read.values.equal(values_TGK)
        assert cache.layer(layer).keys[2, 3].equal(keys_TGK[0])


def test_reading_gives_a_copy() -> None:
    cache, slots_T = make_cache(), torch.tensor([1])
    cache.write(0, slots_T, torch.ones(1, 2, 6), torch.ones(1, 2, 6))
    cache.read(0, slots_T).keys.zero_()
    assert cache.read(0, slots_T).keys.eq(1).all()


def test_values_are_cast_to_the_dtype_of_the_cache() -> None:
    cache, third = make_cache(torch.bfloat16), torch.full((1, 2, 6), 1 / 3)
    cache.write(1, torch.tensor([0]), third, third)
    assert cache.read(1, torch.tensor([0])).keys.equal(third.bfloat16())


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_block_bytes_is_what_a_block_takes_over_all_layers_of_its_kind(dtype: torch.dtype, itemsize: int) -> None:
    cache = make_cache(dtype)
    for kind, layers in ((LayerKind.LOCAL, (0, 2, 4)), (LayerKind.GLOBAL, (1, 3))):
        taken = sum(part[0].numel() * itemsize for layer in layers for part in cache.layer(layer)[:2])
        assert block_bytes(CONFIG, kind, 4, dtype) == taken


def test_the_2b_model_takes_104_kib_per_token_in_bfloat16() -> None:
    both = sum(block_bytes(Gemma2Config(), kind, 1, torch.bfloat16) for kind in LayerKind)
    assert both == 104 * 1024
