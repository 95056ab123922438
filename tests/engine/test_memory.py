"""How large the pools become."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.blocks import BlockCounts, num_blocks_for
from gemline.engine.config import Gemma2Config
from gemline.engine.memory import free_memory_bytes, max_local_blocks, size_pools
from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError

CONFIG = Gemma2Config(max_position_embeddings=128, sliding_window=32)
PER_BLOCK = BlockCounts(1000, 1000)


def on_cpu(num_kv_blocks: int | None = None, max_running: int = 0, max_batch_tokens: int = 0) -> EngineOptions:
    options = EngineOptions(num_kv_blocks=num_kv_blocks, max_running=max_running, max_batch_tokens=max_batch_tokens)
    return options.for_device("cpu")


def test_the_local_pool_holds_the_windows_of_all_running_sequences_and_no_more() -> None:
    options = on_cpu(num_kv_blocks=500, max_running=4, max_batch_tokens=16)
    assert max_local_blocks(options, CONFIG) == 4
    assert size_pools(options, CONFIG, PER_BLOCK, 10**9) == BlockCounts(500, 16)


def test_the_local_pool_is_never_larger_than_the_global_one() -> None:
    options = on_cpu(num_kv_blocks=8, max_running=64)
    assert size_pools(options, CONFIG, PER_BLOCK, 10**9) == BlockCounts(8, 8)


@given(
    free_bytes=st.integers(0, 10_000_000),
    max_running=st.integers(1, 20),
    max_batch_tokens=st.integers(1, 100),
    local_bytes=st.integers(1, 3000),
    global_bytes=st.integers(0, 3000),
)
def test_unasked_the_pools_take_at_most_a_quarter_of_what_is_free_and_only_what_can_be_used(
    free_bytes: int, max_running: int, max_batch_tokens: int, local_bytes: int, global_bytes: int
) -> None:
    options = on_cpu(max_running=max_running, max_batch_tokens=max_batch_tokens)
    per_block = BlockCounts(global_bytes, local_bytes)
    context_blocks = num_blocks_for(CONFIG.max_position_embeddings, options.block_size)
    try:
        sizes = size_pools(options, CONFIG, per_block, free_bytes)
    except ConfigurationError:
        local = min(context_blocks, max_running * max_local_blocks(options, CONFIG))
        assert context_blocks * global_bytes + local * local_bytes > free_bytes // 4
        return
    assert context_blocks <= sizes.num_global <= max_running * context_blocks
    assert sizes.num_local == min(sizes.num_global, max_running * max_local_blocks(options, CONFIG))
    assert sizes.num_global * global_bytes + sizes.num_local * local_bytes <= free_bytes // 4


def test_a_pool_too_small_for_one_context_is_refused_with_bytes_needed_and_given() -> None:
    with pytest.raises(
        ConfigurationError, match=r"needs 8 blocks of 16, 16000 bytes; the pool has 7 blocks, 14000 byt"
    ):
        size_pools(on_cpu(num_kv_blocks=7), CONFIG, PER_BLOCK, 10**9)


def test_too_little_memory_for_one_context_is_refused_with_bytes_needed_and_given() -> None:
    with pytest.raises(
        ConfigurationError, match=r"16000 bytes; the pool has 1 blocks, 3000 bytes \(12000 bytes are fr"
    ):
        size_pools(on_cpu(), CONFIG, PER_BLOCK, 12000)


def test_more_blocks_than_memory_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigurationError, match=r"100 blocks need 200000 bytes; 150000 bytes are free"):
        size_pools(on_cpu(num_kv_blocks=100), CONFIG, PER_BLOCK, 150_000)


def test_a_context_shorter_than_the_window_needs_no_more_local_blocks_than_global_ones() -> None:
    config = replace(CONFIG, sliding_window=4096)
    assert size_pools(on_cpu(num_kv_blocks=8), config, PER_BLOCK, 10**9) == BlockCounts(8, 8)


def test_a_gpu_gives_nine_tenths_of_what_its_weights_leave() -> None:
    sizes = size_pools(on_cpu(), replace(CONFIG, max_position_embeddings=16), PER_BLOCK, 100_000, is_gpu=True)
    assert sizes == BlockCounts(45, 45)


def test_this_machine_has_some_memory_free() -> None:
    assert 2**20 < free_memory_bytes() < 2**50
