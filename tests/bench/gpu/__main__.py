"""Measures the Triton kernels on an NVIDIA GPU, beside torch's and transformers', within a budget of time.

    PYTHONPATH=kernels:services:tests python -m bench.gpu [--budget-s 560] [--sections NAME ...] [--tune | --dry-run]

Writes tests/bench/results/<gpu>-<date>.json after every figure, and the same into $OUT where that is set; ends with a
table. Without a GPU, --dry-run makes every call once, interpreted and at tiny sizes. --tune looks for better constants.
"""

import argparse
import os
import sys
from pathlib import Path

from bench.gpu.machine import circumstances, file_name
from bench.gpu.plan import SECTIONS, TUNING
from bench.gpu.report import Report
from bench.gpu.run import run_all

_RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=560.0)
    parser.add_argument("--sections", nargs="+", metavar="NAME", choices=[*SECTIONS, *TUNING], default=[])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    planned = TUNING if options.tune else SECTIONS
    if options.sections:
        planned = {name: (SECTIONS | TUNING)[name] for name in options.sections}
    about = circumstances()
    folders = [options.results, *([Path(os.environ["OUT"])] if os.environ.get("OUT") else [])]
    name = ("tuning-" if options.tune else "") + file_name(about)
    report = Report([folder / name for folder in folders], about)
    command = [sys.executable, "-m", "bench.gpu.child", os.pathsep.join(map(str, report.paths))]
    run_all(report, {name: each.patience_s for name, each in planned.items()}, options.budget_s, command)
    print(report.table())
    print(f"written to {report.paths[0]}")


if __name__ == "__main__":
    main()
