"""Other constants than the kernels have, put in their places for a while."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

from gemline_kernels.gpu import attention, linear
from gemline_kernels.gpu.device import linear as device

_Patch = AbstractContextManager[object]


class Setting(Protocol):
    """A value of each constant."""

    def patches(self) -> list[_Patch]: ...


class Decode(NamedTuple):
    """Of decode attention."""

    tile: int
    stages: int
    warps: int
    programs: int  # a processor

    def patches(self) -> list[_Patch]:
        return [
            patch.object(attention, "_DECODE_TILE", self.tile),
            patch.object(attention, "_PROGRAMS_PER_PROCESSOR", self.programs),
            patch.object(attention, "DECODE_OPTIONS", {"num_warps": self.warps}),
            _constants("decode_constants", STAGES=self.stages),
        ]


class Prefill(NamedTuple):
    """Of prefill attention."""

    rows: int
    tile: int
    stages: int
    warps: int

    def patches(self) -> list[_Patch]:
        return [
            patch.object(attention, "_PREFILL_ROWS", self.rows),
            patch.object(attention, "PREFILL_OPTIONS", {"num_warps": self.warps}),
            _constants("prefill_constants", TILE=self.tile, STAGES=self.stages),
        ]


class Product(NamedTuple):
    """Of products with quantised weights."""

    columns: int
    step: int
    stages: int
    warps: int
    programs: int

    def patches(self) -> list[_Patch]:
        launched = {"STAGES": self.stages, "num_warps": self.warps}
        return [
            patch.object(linear, "_COLUMNS", self.columns),
            patch.object(linear, "_STEP", self.step),
            patch.object(linear, "_PROGRAMS_PER_PROCESSOR", self.programs),
            patch.object(device, "byte_linear", _Launcher(device.byte_linear, launched)),
            patch.object(device, "nibble_linear", _Launcher(device.nibble_linear, launched)),
        ]


def words(setting: Setting) -> str:
    """Names and values."""
    fields: dict[str, int] = setting._asdict() if isinstance(setting, Decode | Prefill | Product) else {}
    return ", ".join(f"{name} {value}" for name, value in fields.items())


@contextmanager
def in_force(setting: Setting | None) -> Iterator[None]:
    """None changes nothing."""
    with ExitStack() as stack:
        for each in setting.patches() if setting is not None else []:
            stack.enter_context(each)
        yield


@dataclass(frozen=True)
class _Launcher:
    """A kernel that is launched with other constants than its caller says."""

    kernel: Any
    constants: dict[str, int]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        launch = self.kernel[grid]
        return lambda *arguments, **constants: launch(*arguments, **(constants | self.constants))


def _constants(name: str, **changed: int) -> _Patch:
    present = getattr(attention.Shape, name)
    return patch.object(attention.Shape, name, lambda self: present(self) | changed)
