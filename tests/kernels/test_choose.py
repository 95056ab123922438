"""The backend is chosen by the machine, and the log says which it is and why."""

import logging
from collections.abc import Iterator

import pytest

from gemline_kernels import choose as module
from gemline_kernels import portable
from gemline_kernels.choose import choice, choose
from gemline_kernels.cpu.build import NativeUnavailableError


@pytest.fixture(autouse=True)
def chosen_anew() -> Iterator[None]:
    for function in (choose, choice):
        function.cache_clear()
    yield
    for function in (choose, choice):
        function.cache_clear()


def unavailable() -> None:
    raise NativeUnavailableError("no C++ compiler")


def test_without_the_library_torch_serves_and_one_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(module, "NativeBackend", unavailable)
    assert choose() is choose() is portable
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no C++ compiler" in caplog.text


def test_amx_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"amx_tile"}))
    monkeypatch.setattr(module, "NativeBackend", unavailable)
    with caplog.at_level(logging.INFO):
        assert choose() is portable
    assert "AMX" in caplog.text


def test_otherwise_the_native_backend_is_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Native:
        name = "native"

    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx512f"}))
    monkeypatch.setattr(module, "NativeBackend", Native)
    with caplog.at_level(logging.INFO):
        assert choose().name == "native"
    assert "native" in caplog.text
