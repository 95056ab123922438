"""A run's figures for people (a table, a plot) and for programs (JSON)."""

import importlib
import importlib.util
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemline.bench.measure import Record, Spread, Summary
from gemline.errors import ConfigurationError

_SPREADS = {"ttft_ms": "TTFT, ms", "tpot_ms": "TPOT, ms", "itl_ms": "ITL, ms", "e2el_ms": "E2EL, ms"}
_MAX_REASONS = 10


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a figure is worth nothing without. `command` holds no key."""

    version: str
    date: str  # ISO 8601 with its zone
    command: tuple[str, ...]
    url: str
    model: str
    workload: dict[str, Any]


def table(summary: Summary) -> str:
    """Aligned text, a few lines of totals above the times."""
    totals = [f"{name:<24}{value:>12}" for name, value in _totals(summary)]
    header = f"{'':<12}" + "".join(f"{name:>12}" for name in Spread._fields)
    times = [_row(name, getattr(summary, field)) for field, name in _SPREADS.items()]
    notes = [] if summary.counted_by_server else ["(the server told no usage: a chunk was taken for a token)"]
    return "\n".join([*totals, "", header, *times, *notes, *_failures(summary)])


def _totals(summary: Summary) -> list[tuple[str, str]]:
    rows = [
        ("requests", f"{summary.num_requests}"),
        ("failed", f"{summary.num_failed}"),
        ("duration, s", f"{summary.duration_s:.2f}"),
        ("prompt tokens", f"{summary.prompt_tokens}"),
        ("output tokens", f"{summary.output_tokens}"),
        ("requests/s", f"{summary.request_rate:.2f}"),
        ("output tokens/s", f"{summary.output_rate:.1f}"),
        ("total tokens/s", f"{summary.total_rate:.1f}"),
    ]
    if summary.goodput is None:
        return rows
    return [*rows, ("goodput, requests/s", f"{summary.goodput:.2f}"), ("good requests", f"{summary.num_good}")]


def _row(name: str, spread: Spread | None) -> str:
    values = ["-"] * len(Spread._fields) if spread is None else [f"{value:.1f}" for value in spread]
    return f"{name:<12}" + "".join(f"{value:>12}" for value in values)


def _failures(summary: Summary) -> list[str]:
    if not summary.errors:
        return []
    reasons = [f"{count:>6} x {_printable(reason)}" for reason, count in summary.errors.items()]
    more = [f"       and {len(reasons) - _MAX_REASONS} reasons more"] if len(reasons) > _MAX_REASONS else []
    return ["", "failed:", *reasons[:_MAX_REASONS], *more]


def _printable(text: str) -> str:
    """A foreign server's words must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def as_json(summary: Summary, records: Sequence[Record], circumstances: Circumstances) -> str:
    """Everything: what was run, the figures, and each request's times in seconds after the first was sent."""
    begun_s = min((record.sent_s for record in records), default=0.0)
    whole = {
        **asdict(circumstances),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "summary": _figures(summary),
        "requests": [_request(record, begun_s) for record in records],
    }
    return json.dumps(whole, indent=1) + "\n"


def _figures(summary: Summary) -> dict[str, Any]:
    spreads = {field: getattr(summary, field) for field in _SPREADS}
    return {
        **asdict(summary),
        "num_failed": summary.num_failed,
        "requests_per_s": summary.request_rate,
        "output_tokens_per_s": summary.output_rate,
        "total_tokens_per_s": summary.total_rate,
        "goodput_per_s": summary.goodput,
        **{field: spread and spread._asdict() for field, spread in spreads.items()},
    }


def _request(record: Record, begun_s: float) -> dict[str, Any]:
    return {
        "sent_s": round(record.sent_s - begun_s, 6),
        "chunks_s": [round(at_s - record.sent_s, 6) for at_s in record.chunk_times_s],
        "prompt_tokens": record.num_prompt_tokens,
        "output_tokens": record.num_output_tokens,
        "error": record.error,
    }


def write_json(path: Path, text: str) -> None:
    """Raises ConfigurationError naming option and file."""
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"--json {path}: {error.strerror}") from None


def check_outputs(json_path: Path | None, plot_path: Path | None) -> None:
    """Raises ConfigurationError before the run for what would fail after it."""
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and path.is_dir():
            raise ConfigurationError(f"{option} {path}: is a directory")
        if path is not None and not path.parent.is_dir():
            raise ConfigurationError(f"{option} {path}: the directory {path.parent} does not exist")
    if plot_path is not None:
        _check_plotting()


def _check_plotting() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs the package matplotlib: pip install matplotlib, or use --json")


def plot(records: Sequence[Record], path: Path, title: str) -> None:
    """A PNG: which share of requests (gaps) had a TTFT (ITL) of at most so many milliseconds."""
    _check_plotting()
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(10, 4), layout="constrained")
    done = [record for record in records if record.error is None]
    values = {"TTFT": [one.ttft_s for one in done], "ITL": [gap for one in done for gap in one.itl_s]}
    figure.suptitle(title)
    for axes, (name, times_s) in zip(figure.subplots(1, 2), values.items(), strict=True):
        if times_s:
            axes.ecdf([time_s * 1e3 for time_s in times_s])
        axes.set(xlabel=f"{name}, ms", ylabel="share", ylim=(0, 1))
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise ConfigurationError(f"--plot {path}: {error.strerror}") from None
