"""Engine options that cannot be used are refused by name."""

from typing import Any

import pytest

from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match=r"float16 .* 65504; use bfloat16"):
        EngineOptions(dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, is 'int8'"),
        ({"quantization": "int3"}, "quantization must be one of none, int8, int4, fp8, is 'int3'"),
        ({"kv_dtype": "int8"}, "kv_dtype must be one of auto, fp8, is 'int8'"),
        ({"quantization": None}, "quantization must be one of none, int8, int4, fp8, is None"),
        ({"num_kv_blocks": 0}, "num_kv_blocks must be a whole number of at least 1, is 0"),
        ({"block_size": -16}, "block_size must be .* at least 1, or 0 for what suits the device, is -16"),
        ({"max_batch_tokens": -1}, "max_batch_tokens"),
        ({"max_running": 1.5}, "max_running"),
        ({"gpu_share": 0.0}, "gpu_share must be above 0 and at most 1, is 0.0"),
        ({"tenant_cache_share": 1.5}, "tenant_cache_share must be above 0 and at most 1, is 1.5"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"num_threads": 0}, "num_threads"),
        ({"block_size": None}, "block_size"),
    ],
)
def test_an_unusable_option_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EngineOptions(**options)


def test_sizes_that_are_not_given_suit_the_device() -> None:
    options = EngineOptions(max_running=7)
    on_cpu, on_gpu = options.for_device("cpu"), options.for_device("cuda")
    assert (on_cpu.block_size, on_cpu.max_batch_tokens, on_cpu.max_running) == (16, 512, 7)
    assert (on_gpu.block_size, on_gpu.max_batch_tokens, on_gpu.max_running) == (64, 2048, 7)
    assert on_gpu.for_device("cpu") == on_gpu
