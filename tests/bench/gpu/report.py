"""What was measured on a GPU, written after every figure, and as a table. Measures nothing."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

RUNNING, DONE = "running", "done"
_NUM_FASTEST = 5


class Target(NamedTuple):
    """The least that a figure should be."""

    figure: str
    at_least: float


@dataclass(frozen=True)
class Row:
    """One case: how long it took, and what that comes to. Shares have names that begin with `of_`, ratios with `x_`."""

    case: str
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    target: Target | None = None
    section: str = ""

    @property
    def is_met(self) -> bool | None:
        """None without a target, or without its figure."""
        if self.target is None or self.target.figure not in self.figures:
            return None
        return self.figures[self.target.figure] >= self.target.at_least


@dataclass
class Report:
    """All rows so far, and how each section ended: in a file, of which there may be copies, and as last read."""

    paths: list[Path]
    about: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)  # cases, "section: case"
    notes: list[str] = field(default_factory=list)  # of cases that failed
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def at(cls, paths: Iterable[Path]) -> "Report":
        """What was written there last."""
        report = cls([*paths])
        report.read()
        return report

    def read(self) -> None:
        """What was written last."""
        whole = json.loads(self.paths[0].read_text())
        self.rows = [_row(values) for values in whole.pop("rows")]
        for name, values in whole.items():
            setattr(self, name, values)

    def write(self) -> None:
        """Who reads meanwhile sees the old file or the new one."""
        whole = {name: getattr(self, name) for name in ("about", "sections", "tried", "notes")}
        whole["rows"] = [asdict(row) | {"met": row.is_met} for row in self.rows]
        text = json.dumps(_rounded(whole), indent=1) + "\n"
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".part")
            scratch.write_text(text)
            scratch.replace(path)

    def written_at(self) -> float:
        """Seconds since the epoch."""
        return self.paths[0].stat().st_mtime

    def figure(self, section: str, case: str, figure: str) -> float:
        """NaN when it was not measured."""
        found = [row.figures.get(figure, math.nan) for row in self.rows if (row.section, row.case) == (section, case)]
        return found[-1] if found else math.nan

    def seconds(self, section: str, case: str) -> float:
        """NaN when it was not measured."""
        found = [row.seconds for row in self.rows if (row.section, row.case) == (section, case)]
        return found[-1] if found else math.nan

    def table(self) -> str:
        """How each section ended, what has a target, the fastest settings, and what failed."""
        lines = []
        for section, status in self.sections.items():
            lines.append(f"== {section} ({status})")
            lines += [line(row) for row in _telling([row for row in self.rows if row.section == section])]
        met = [row.is_met for row in self.rows if row.is_met is not None]
        return "\n".join([*lines, *self.notes, f"{sum(met)} of {len(met)} targets met"])


def _telling(rows: list[Row]) -> list[Row]:
    """Rows with a target; of settings of one and the same case, "case | setting", the first one and the fastest."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if " | " in row.case:
            settings.setdefault(row.case.split(" | ")[0], []).append(row)
    fastest = [[first, *sorted(others, key=_seconds)[:_NUM_FASTEST]] for first, *others in settings.values()]
    return [row for row in rows if row.is_met is not None] + [row for group in fastest for row in group]


def _seconds(row: Row) -> float:
    return row.seconds


def _row(values: dict[str, Any]) -> Row:
    """As it was before it was written."""
    values.pop("met")
    target = values.pop("target")
    figures = {name: math.nan if value is None else value for name, value in values.pop("figures").items()}
    return Row(**values, figures=figures, target=None if target is None else Target(*target))


def line(row: Row) -> str:
    """A row of the table."""
    figures = ", ".join(_shown(name, value) for name, value in row.figures.items())
    text = f"{row.case:44} {row.seconds * 1e6:11.1f} us  {figures}"
    if row.target is None or row.is_met is None:
        return text
    return f"{text}  [target {_shown(*row.target)}: {'met' if row.is_met else 'MISSED'}]"


def _shown(name: str, value: float) -> str:
    if name.startswith("of_"):
        return f"{value:.1%} {name.replace('_', ' ')}"
    if name.startswith("x_"):
        return f"{value:.2f}x {name[2:].replace('_', ' ')}"
    return f"{value:.5g} {name.replace('_per_', '/')}"


def _rounded(value: Any) -> Any:
    """To six digits, and no NaN: JSON has none."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
