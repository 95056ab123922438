"""The backend is chosen by the machine, and the log says which it is and why."""

import importlib
import logging
import sys
from collections.abc import Iterator

import pytest
import torch

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


class Gpu:
    """What torch says on a machine with a GPU of that compute capability."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        importlib.import_module("gemline_kernels.gpu.backend")  # which asks once whether there is a GPU, and keeps that
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_a_gpu_is_chosen_before_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, (9, 0))
    found = choice()
    assert (found.backend.name, found.why, found.is_fallback) == ("triton", "compiled for A card", False)


def test_a_gpu_too_old_is_refused_with_both_numbers_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, (8, 6))
    with pytest.raises(ValueError, match=r"A card has compute capability 8\.6; .* need 9\.0 .* CUDA_VISIBLE_DEVICES"):
        choice()


def test_a_gpu_without_triton_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"amx_tile"}))
    monkeypatch.delitem(sys.modules, "gemline_kernels.gpu.backend", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("gemline_kernels.gpu")]:
        monkeypatch.delitem(sys.modules, name)
    assert choose() is portable
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "pip install 'gemline[gpu]'" in caplog.text
