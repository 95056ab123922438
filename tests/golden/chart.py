"""Writes what the chart is rendered to for each profile, and the table of what fits. `make verify` runs it.

The table is `gemline plan`'s arithmetic, so that a template can refuse a model that is too large for its GPUs.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from gemline.engine.footprint import Footprint, WeightForm
from gemline.errors import ConfigurationError
from gemline.sizing.capacity import capacity
from gemline.sizing.forms import WEIGHTS
from gemline.sizing.gpus import GPUS, Gpu
from gemline.sizing.models import PUBLISHED

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gemline"
TARGET = Path(__file__).with_name("chart")
SERVED_GPUS = ("h100", "h200")  # what our kernels run on
RELEASE, NAMESPACE = "gemline", "serving"
_DEGREES = (1, 2, 4, 8)  # GPUs of one node
_CONTEXT = 8192  # the model's most


def quantization(form: WeightForm) -> str:
    """As `--quantization` names it."""
    return "none" if form == "bf16" else form


def capacity_table() -> dict[str, Any]:
    """How many sequences of the context's length fit: by GPU, size, quantization, GPUs of an engine."""
    return {
        "context": _CONTEXT,
        "sequences": {gpu: {size: sequences(size, GPUS[gpu]) for size in PUBLISHED} for gpu in SERVED_GPUS},
    }


def sequences(size: str, gpu: Gpu) -> dict[str, dict[str, int]]:
    """Of one model on one kind of GPU."""
    return {quantization(form): _by_degree(size, gpu, form) for form in WEIGHTS}


def _by_degree(size: str, gpu: Gpu, form: WeightForm) -> dict[str, int]:
    found = {}
    for degree in _DEGREES:
        shard = Footprint(PUBLISHED[size], form, num_ranks=degree)
        try:
            found[str(degree)] = capacity(shard, gpu).num_sequences(shard, _CONTEXT)
        except ConfigurationError:  # it cannot be divided so
            found[str(degree)] = 0
    return found


def profiles() -> dict[str, dict[str, Any]]:
    """The values of each profile, by its name."""
    found = sorted(CHART.glob("values-*.yaml"))
    return {path.stem.removeprefix("values-"): yaml.safe_load(path.read_text()) for path in found}


def render(values: dict[str, Any], release: str = RELEASE) -> str:
    """All manifests as one YAML text. Raises HelmValuesError or HelmRenderError with what is wrong with the values."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=release, namespace=NAMESPACE)
    parts = {name: _tidy(text) for name, text in sorted(rendered.items()) if not name.endswith("NOTES.txt")}
    return "".join(f"---\n# Source: {name}\n{text}\n" for name, text in parts.items() if text)


def _tidy(text: str) -> str:
    """Without the empty lines that a template's own actions leave."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()).removeprefix("---\n")


def main() -> None:
    """Rewrites the table and every golden file; one whose profile has gone goes too."""
    (CHART / "files" / "capacity.json").write_text(json.dumps(capacity_table(), indent=2) + "\n")
    TARGET.mkdir(exist_ok=True)
    for path in TARGET.glob("*.yaml"):
        path.unlink()
    for name, values in profiles().items():
        (TARGET / f"{name}.yaml").write_text(render(values))


if __name__ == "__main__":
    main()
