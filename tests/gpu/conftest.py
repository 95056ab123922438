"""The Triton kernels at the sizes of the published models: `make gpu`, where there is an NVIDIA GPU.

`TRITON_INTERPRET=1 pytest tests/gpu` runs the same at a fraction of the sizes without one, in a process of its own.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.device import IS_INTERPRETED, why_no_device

if IS_INTERPRETED:
    from support.triton_bfloat16 import mend_interpreter

    mend_interpreter()


class _Skipped(pytest.Module):
    """A module that is not even imported."""

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        pytest.skip(why_no_device())


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _Skipped.from_parent(parent, path=module_path) if why_no_device() else None


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Other processes test on the same GPU: what a test took is free after it."""
    yield
    if not IS_INTERPRETED:
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def compiled() -> None:
    """For what an interpreter has no like of."""
    if IS_INTERPRETED:
        pytest.skip("needs a GPU")
