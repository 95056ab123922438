"""Starts processes that run sections, one after the other: what breaks one, or hangs in it, does not end the others."""

import subprocess
import time
from collections.abc import Mapping, Sequence

from bench.gpu.report import RUNNING, Report

_POLL_S = 0.5
_START_S = 90.0  # until a process has begun


def run_all(report: Report, patience_s: Mapping[str, float], budget_s: float, command: Sequence[str]) -> None:
    """Sections by name, with how long one may be silent. `command` runs what is appended: the end, and their names."""
    end = time.time() + budget_s
    report.write()
    while (rest := [name for name in patience_s if name not in report.sections]) and time.time() < end:
        process = subprocess.Popen([*command, str(end), *rest])
        ending = _watch(process, report, patience_s, end)
        num_before = len(report.sections), len(report.tried)
        report.read()
        for name, status in [*report.sections.items()]:
            if status == RUNNING:
                _settle(report, name, ending, time.time() < end)
        if (len(report.sections), len(report.tried)) == num_before:
            report.notes.append(f"nothing was tried: {ending}")
            break
        report.write()
    for name in patience_s:
        report.sections.setdefault(name, "left out: no time")
    report.write()


def _settle(report: Report, name: str, ending: str, is_time: bool) -> None:
    """The case at which the process ended is not tried again, the others of its section are."""
    last = report.tried[-1] if report.tried else ""
    if is_time and last.startswith(f"{name}: ") and not any(note.startswith(last) for note in report.notes):
        report.notes.append(f"{last}: {ending}")
        del report.sections[name]
    else:
        report.sections[name] = f"failed: {ending}"


def _watch(process: "subprocess.Popen[bytes]", report: Report, patience_s: Mapping[str, float], end: float) -> str:
    """How it ended. It is made to when it writes nothing for too long, and at the end of all time."""
    begun = time.time()
    while process.poll() is None:
        time.sleep(_POLL_S)
        running = next((name for name, status in Report.at(report.paths).sections.items() if status == RUNNING), None)
        limit = max(begun, report.written_at()) + (_START_S if running is None else patience_s[running])
        if time.time() > min(limit, end + _POLL_S):
            process.kill()
            process.wait()
            return "it hung" if time.time() < end else "it did not end in time"
    return f"the process ended with {process.returncode}"
