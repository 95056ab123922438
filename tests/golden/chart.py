"""Writes what the chart is rendered to for each profile, and the table of what models take. `make verify` runs it.

The table is the arithmetic of `gemline plan`, so that a template can refuse a model that is too large for its GPUs.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from gemline.engine.footprint import CacheForm, Footprint, WeightForm
from gemline.sizing.capacity import RESERVED_BYTES
from gemline.sizing.forms import CACHES, WEIGHTS
from gemline.sizing.models import PUBLISHED

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gemline"
TARGET = Path(__file__).with_name("chart")
RELEASE, NAMESPACE = "gemline", "serving"
CONTEXT = 8192  # the model's most
DEGREES = (1, 2, 4, 8)  # GPUs of one node
_WEIGHTS: tuple[WeightForm, ...] = ("f32", *WEIGHTS)
_CACHES: tuple[CacheForm, ...] = ("f32", *CACHES)


def sizes_table() -> dict[str, Any]:
    """What an engine takes of each GPU, in bytes: weights and one context, by size, GPUs of an engine, and form."""
    return {
        "context": CONTEXT,
        "reservedBytes": RESERVED_BYTES,
        "models": {size: {str(degree): _of_rank(size, degree) for degree in DEGREES} for size in PUBLISHED},
    }


def _of_rank(size: str, degree: int) -> dict[str, dict[str, int]]:
    shard = Footprint(PUBLISHED[size], num_ranks=degree)
    return {
        "weightBytes": {form: replace(shard, weights=form).weight_bytes for form in _WEIGHTS},
        "contextBytes": {form: replace(shard, cache=form).sequence_bytes(CONTEXT) for form in _CACHES},
    }


def profiles() -> dict[str, dict[str, Any]]:
    """The values of each profile, by its name."""
    found = sorted(CHART.glob("values-*.yaml"))
    return {path.stem.removeprefix("values-"): yaml.safe_load(path.read_text()) for path in found}


def render(values: dict[str, Any], release: str = RELEASE, namespace: str = NAMESPACE) -> str:
    """All manifests as one YAML text. Raises HelmValuesError or HelmRenderError with what is wrong with the values."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=release, namespace=namespace)
    parts = {name: _tidy(text) for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt")}
    return "".join(f"---\n# Source: {name}\n{text}\n" for name, text in parts.items() if text)


def _tidy(text: str) -> str:
    """Without the empty lines that a template's own actions leave."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()).removeprefix("---\n")


def main() -> None:
    """Rewrites the table and every golden file; one whose profile has gone goes too."""
    (CHART / "files" / "sizes.json").write_text(json.dumps(sizes_table(), indent=2) + "\n")
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.glob("*.yaml"):
        path.unlink()
    for name, values in profiles().items():
        (TARGET / f"{name}.yaml").write_text(render(values))


if __name__ == "__main__":
    main()
