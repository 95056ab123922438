"""Loading takes the packed weights and about one matrix, whatever the checkpoint weighs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from gemline.engine.config import Gemma2Config

CONFIG = {"vocab_size": 512, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 8, "head_dim": 32}
MATRIX = 8192 * 1024 * 4  # bytes of one of an MLP, in float32
LOAD = """
import sys
from pathlib import Path
from gemline.engine.loading import load_model
from gemline.engine.options import EngineOptions
from gemline_kernels import portable, reference

def resident_bytes(peak):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024

options = EngineOptions(dtype="float32", quantization=sys.argv[3])
backend = reference if sys.argv[3] == "int8" else portable
load_model(Path(sys.argv[2]), options, backend)  # imports, first of all
before = resident_bytes(False)
loaded = load_model(Path(sys.argv[1]), options, backend)
print(loaded.report.num_weight_bytes, resident_bytes(True) - before, resident_bytes(False) - before)
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of 24 M weights in three matrices each, in bfloat16: 0.4 GB."""
    directory = tmp_path_factory.mktemp("heavy")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    shapes = Gemma2Config.load(directory).parameter_shapes()
    save_file({name: torch.rand(shape).bfloat16() for name, shape in shapes.items()}, directory / "model.safetensors")
    return directory


class Taken(NamedTuple):
    """Bytes, of a process that loads."""

    packed: int
    peak: int
    after: int


def load(heavy: Path, tiny: Path, quantization: str) -> Taken:
    command = [sys.executable, "-c", LOAD, str(heavy), str(tiny), quantization]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Taken(*(int(word) for word in done.stdout.split()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_quantized_model_never_takes_the_memory_of_its_checkpoint(heavy: Path, tiny_checkpoint: Path) -> None:
    packed, peak, after = load(heavy, tiny_checkpoint, "int8")
    assert after < packed + MATRIX
    assert peak < packed + 6 * MATRIX < (heavy / "model.safetensors").stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_in_float32_gate_and_up_are_copied_once_before_they_are_packed(heavy: Path, tiny_checkpoint: Path) -> None:
    """The last layer's are: what is packed lacks them and a down projection, beside twice the two."""
    packed, peak, after = load(heavy, tiny_checkpoint, "none")
    assert after < packed + MATRIX
    assert peak < packed + 2 * MATRIX
