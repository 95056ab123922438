"""The backends that this machine can run, for tests that hold for every one."""

from collections.abc import Callable

import pytest

from gemline_kernels import portable, reference
from gemline_kernels.backend import Backend
from gemline_kernels.cpu.build import NativeUnavailableError
from gemline_kernels.native import NativeBackend

_MAKERS: dict[str, Callable[[], Backend]] = {
    "reference": lambda: reference,
    "onednn": lambda: portable,
    "native": NativeBackend,
}
NAMES = tuple(_MAKERS)


def backend_or_skip(name: str) -> Backend:
    """That backend; skips the test, saying why, where this machine cannot have it."""
    try:
        return _MAKERS[name]()
    except NativeUnavailableError as error:
        pytest.skip(f"no native backend: {error}")
