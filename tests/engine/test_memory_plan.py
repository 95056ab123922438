"""What a model will take is told before it is loaded, and is what it takes."""

import logging
from dataclasses import replace

import pytest

from gemline.demo.shipped import SHIPPED
from gemline.engine.blocks import BlockCounts
from gemline.engine.config import LayerKind
from gemline.engine.engine import Engine
from gemline.engine.loading import load_model
from gemline.engine.memory_plan import plan_memory
from gemline.engine.options import EngineOptions, KvDtype, Quantization
from gemline.errors import ConfigurationError
from gemline.sizing.models import find_model

GIB = 2**30
LARGE = find_model("27b")
BFLOAT16 = EngineOptions("bfloat16", block_size=16, max_batch_tokens=512, max_running=8)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_the_plan_is_what_is_taken(
    dtype: str, quantization: Quantization, kv_dtype: KvDtype, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(dtype, quantization, kv_dtype, num_kv_blocks=200, num_threads=1)
    with caplog.at_level(logging.INFO, "gemline"):
        loaded = load_model(SHIPPED, options)
    plan = plan_memory(loaded.model.config, loaded.options, 4 * GIB)
    assert plan.footprint.weight_bytes == pytest.approx(loaded.report.num_weight_bytes, rel=0.03)
    assert any("memory: " in line and "tokens in global layers" in line for line in caplog.messages)
    engine = Engine(loaded.model, loaded.model.config, loaded.options)
    assert plan.blocks == engine.num_blocks == BlockCounts(200, engine.num_blocks.num_local)
    numbers = {LayerKind.GLOBAL: 200, LayerKind.LOCAL: engine.num_blocks.num_local}
    assert plan.pool_bytes == {
        kind: number * loaded.options.block_size * engine.token_bytes(kind) for kind, number in numbers.items()
    }


@pytest.mark.parametrize(
    ("free_gib", "is_gpu", "would"),
    [
        (50, False, "--quantization fp8 (25.37 GiB), --quantization int8 (25.37 GiB), --quantization int4"),
        (35, True, "--tensor-parallel 2 (25.36 GiB), --tensor-parallel 4"),
        (1, False, "What would: nothing; it needs more memory"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(free_gib: int, is_gpu: bool, would: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan_memory(LARGE, BFLOAT16, free_gib * GIB, is_gpu=is_gpu)
    print(refused.value)
    assert would in str(refused.value)
    assert "50.71 GiB of bf16 weights, and 2.16 GiB for one context of 8192 tokens, do not fit" in str(refused.value)


def test_fp8_keys_and_values_are_named_where_they_would_do() -> None:
    int4 = replace(BFLOAT16, quantization="int4")
    with pytest.raises(ConfigurationError, match=r"What would: --kv-cache-dtype fp8 \(1\.08 GiB for the context\)$"):
        plan_memory(LARGE, int4, 24 * GIB)
    assert "fp8 keys and values of" in str(plan_memory(LARGE, replace(int4, kv_dtype="fp8"), 24 * GIB))


def test_the_same_memory_holds_twice_the_tokens_in_fp8() -> None:
    many = replace(BFLOAT16, max_running=64)
    wide, narrow = (plan_memory(LARGE, replace(many, kv_dtype=it), 70 * GIB, is_gpu=True) for it in ("auto", "fp8"))
    assert narrow.blocks.num_global == pytest.approx(2 * wide.blocks.num_global, rel=0.01)


def test_a_pool_that_is_too_small_is_refused_as_that() -> None:
    with pytest.raises(ConfigurationError, match="num_kv_blocks: one context of 8192 tokens needs 512 blocks"):
        plan_memory(LARGE, replace(BFLOAT16, num_kv_blocks=100), 78 * GIB)


def test_ranks_share_what_is_to_be_held() -> None:
    options = replace(BFLOAT16, quantization="int8")
    whole, half = (plan_memory(LARGE, options, 78 * GIB, num_ranks=number, is_gpu=True) for number in (1, 2))
    assert half.footprint.weight_bytes == pytest.approx(whole.footprint.weight_bytes / 2, rel=0.01)
    assert half.blocks.num_global >= whole.blocks.num_global
    assert "of each of 2 ranks" in str(half)
