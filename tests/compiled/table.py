"""Compiles every kernel for an H100 and writes what each takes: `python tests/compiled/table.py`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import triton

sys.path.insert(0, str(Path(__file__).parents[1]))
from compiled.hopper import compile_variant
from compiled.variants import variants


def main() -> None:
    kernels = {}
    for variant in variants():
        kernels[variant.name] = taken = asdict(compile_variant(variant))
        print(variant.name, taken, flush=True)
    text = json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1)
    Path(__file__).with_name("table.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
