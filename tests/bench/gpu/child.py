"""Runs sections in this process, case by case; each figure is written as soon as it is there.

    python -m bench.gpu.child PATHS END NAME ...

of reports, one beside the other, of the time at which all ends, and of sections.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import torch
from bench.gpu.bench import Bench, Case, bench_on
from bench.gpu.plan import EVERYTHING, Planned
from bench.gpu.report import DONE, RUNNING, Report, line
from support.device import DEVICE, IS_INTERPRETED

_LOST = 3  # this process's exit code when the device does not answer any more


def run_sections(report: Report, names: Sequence[str], end: float) -> None:
    """As far as there is time."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    bench = bench_on(DEVICE, report)
    for name in names:
        if time.time() > end:
            return
        print(f"== {name}", flush=True)
        report.sections[name] = RUNNING
        report.write()
        report.sections[name] = run_section(bench, name, EVERYTHING[name], end)
        report.write()


def run_section(bench: Bench, name: str, planned: Planned, end: float) -> str:
    """How it ended. Cases that were tried by a process before are left out."""
    stop = min(end, time.time() + planned.share_s)
    try:
        cases = resolve_name(planned.function)(bench)
        while (case := next(cases, None)) is not None:
            if time.time() > stop:
                return f"out of time before {case.name}"
            if f"{name}: {case.name}" not in bench.report.tried:
                _run_case(bench, name, case)
            del case  # and with it what it holds of the device's memory
    except Exception as error:
        _check_device(bench)
        return f"failed: {_words(error)}"
    return DONE


def _run_case(bench: Bench, section: str, case: Case) -> None:
    report = bench.report
    report.tried.append(f"{section}: {case.name}")
    report.write()
    try:
        row = replace(case.measure(), section=section)
        report.rows.append(row)
        print(line(row), flush=True)
    except Exception as error:
        report.notes.append(f"{section}: {case.name}: failed: {_words(error)}")
        print(report.notes[-1], flush=True)
    report.write()
    _check_device(bench)
    if not section.startswith("tune"):  # whose cases are many, and small
        bench.give_back()


def _check_device(bench: Bench) -> None:
    """After a fault of a kernel nothing runs in this process any more."""
    try:
        if bench.is_gpu:
            torch.cuda.synchronize()
    except RuntimeError:
        sys.exit(_LOST)


def _words(error: Exception) -> str:
    """Its kind, and the beginning of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    if IS_INTERPRETED:
        from support.triton_bfloat16 import mend_interpreter

        mend_interpreter()
    run_sections(Report.at(map(Path, sys.argv[1].split(os.pathsep))), sys.argv[3:], float(sys.argv[2]))
