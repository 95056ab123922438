"""What a run of the comparison gave: every round's figures, their medians, and both as JSON. Measures nothing."""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, float]


@dataclass
class Result:
    """One server. Memory is the most that was seen after a case, in MB (1e6 bytes)."""

    start_s: float | None = None
    memory_mb: float = 0.0  # of all its processes
    largest_process_mb: float = 0.0
    load_averages: list[float] = field(default_factory=list)  # before its start and before each of its rounds
    rounds: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))  # by case
    others_share: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # of the CPU, by case
    errors: list[str] = field(default_factory=list)

    def saw_memory(self, total_bytes: int, largest_bytes: int) -> None:
        self.memory_mb = max(self.memory_mb, total_bytes / 1e6)
        self.largest_process_mb = max(self.largest_process_mb, largest_bytes / 1e6)

    def median(self, case: str, figure: str) -> float | None:
        """Over the rounds; None when the case was not run."""
        values = [figures[figure] for figures in self.rounds.get(case, ())]
        return statistics.median(values) if values else None

    @property
    def medians(self) -> dict[str, Figures]:
        return {
            case: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
            for case, rounds in self.rounds.items()
        }


@dataclass
class Comparison:
    """A run: `about` is the machine, the versions and the options, `peaks` what the machine can do at most."""

    about: dict[str, Any]
    peaks: dict[str, float]
    results: dict[str, Result] = field(default_factory=dict)  # by the server's name

    def median(self, server: str, case: str, figure: str) -> float | None:
        return self.results[server].median(case, figure) if server in self.results else None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        servers = {name: {"medians": result.medians, **vars(result)} for name, result in self.results.items()}
        whole = {"about": self.about, "peaks": self.peaks, "servers": servers}
        path.write_text(json.dumps(_rounded(whole), indent=1) + "\n")


def read(path: Path) -> Comparison:
    """What `write` wrote."""
    whole = json.loads(path.read_text())
    results = {}
    for name, values in whole["servers"].items():
        values.pop("medians")
        results[name] = Result(**values)
    return Comparison(whole["about"], whole["peaks"], results)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
