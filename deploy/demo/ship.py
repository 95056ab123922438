"""Puts a trained stage into the package: checkpoint, manifest, model card and loss plot.

    .venv/bin/python deploy/demo/evaluate.py --full distilled-0
    .venv/bin/python deploy/demo/ship.py distilled-0

The card has the scores of every stage that was evaluated.
"""

import argparse
import datetime
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from recipe.card import card
from recipe.sizes import STAGES
from recipe.stage import export_stage

from gemline.cache import cache_dir
from gemline.demo.shipped import SHIPPED
from gemline.distill.curve import Point, draw, read_curve
from gemline.distill.export import FILES

_MOST_BYTES = 12_000_000


def main() -> None:
    """One stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[stage.name for stage in STAGES])
    parser.add_argument("--out", type=Path, default=cache_dir() / "demo-training")
    parser.add_argument("--target", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    out, target = arguments.out, arguments.target
    names = [stage.name for stage in STAGES]
    scores = {name: json.loads((out / f"{name}.json").read_text()) for name in names if (out / f"{name}.json").exists()}
    if arguments.stage not in scores:
        sys.exit(f"{arguments.stage} has no scores: run deploy/demo/evaluate.py --full {arguments.stage} first")
    made = export_stage(out, arguments.stage)
    num_bytes = sum((made / name).stat().st_size for name in FILES)
    if num_bytes > _MOST_BYTES:
        sys.exit(f"{made}: {num_bytes} bytes, more than the {_MOST_BYTES} that may be shipped")
    target.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, "SHA256SUMS"):
        shutil.copyfile(made / name, target / name)
    (target / "README.md").write_text(card(arguments.stage, scores, _context()))
    curves: dict[str, Sequence[Point]] = {
        name: read_curve(out / f"{name}.tsv") for name in names if (out / f"{name}.tsv").exists()
    }
    (target / "loss.svg").write_text(draw(curves))
    sys.stdout.write(f"{target}: {num_bytes} bytes\n")


def _context() -> str:
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"Scores of {datetime.date.today().isoformat()}, {versions}. The losses of all trainings: loss.svg."


if __name__ == "__main__":
    main()
