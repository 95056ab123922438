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
        ({"quantization": "int3"}, "quantization must be one of none, int8, int4, is 'int3'"),
        ({"quantization": None}, "quantization must be one of none, int8, int4, is None"),
        ({"num_kv_blocks": 0}, "num_kv_blocks must be a whole number of at least 1, is 0"),
        ({"block_size": 0}, "block_size"),
        ({"max_batch_tokens": -1}, "max_batch_tokens"),
        ({"max_running": 0}, "max_running"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"num_threads": 0}, "num_threads"),
        ({"block_size": None}, "block_size"),
    ],
)
def test_an_unusable_option_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EngineOptions(**options)
