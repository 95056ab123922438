"""Where the cache is: as the user says, else as the desktop says, else in the home; the kernels agree."""

from pathlib import Path

import pytest

from gemline import cache
from gemline_kernels.cpu import build


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GEMLINE_CACHE": "/own", "XDG_CACHE_HOME": "/desktop"}, "/own"),
        ({"XDG_CACHE_HOME": "/desktop"}, "/desktop/gemline"),
        ({"GEMLINE_CACHE": "", "XDG_CACHE_HOME": ""}, "/somebody/.cache/gemline"),
        ({}, "/somebody/.cache/gemline"),
    ],
)
def test_models_logs_and_the_native_library_are_in_one_folder(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("GEMLINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_dir() == build.cache_dir() == Path(expected)
