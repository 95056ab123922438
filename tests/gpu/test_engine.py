"""The whole engine on the GPU, steps queued ahead: the tokens that the reference gives on the CPU."""

from pathlib import Path

import pytest
from interpreted.test_engine import (
    test_quantised_weights_serve as test_quantised_weights_serve,
)
from interpreted.test_engine import (
    test_the_engine_gives_the_tokens_of_the_reference as test_the_engine_gives_the_tokens_of_the_reference,
)
from support.noise_model.checkpoint import TINY, make_checkpoint


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of its own: what other tests share needs a Redis to be installed."""
    target = tmp_path_factory.mktemp("tiny")
    make_checkpoint(target, TINY)
    return target
