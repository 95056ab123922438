"""Writes the golden files of this directory: what the tiny demo model must compute. `make verify` runs it.

A logit's last digits depend on the machine. So a file whose numbers still hold within the tolerance is left as it is,
and `git diff` shows a change only when there is one.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.noise_model.checkpoint import DEMO, TINY, make_checkpoint
from support.solo import Solo

from gemline.engine.config import Gemma2Config
from gemline.engine.manifest import sha256_of
from gemline.engine.model import Gemma2Model
from gemline.engine.weights import load_weights

TOLERANCE = 1e-3
_TARGET = Path(__file__).with_name("tiny_logits.json")
_PROMPT = [2, 106, *range(473, 513), 107, 108]  # over twice the window of 16
_NUM_GENERATED = 24
_NUM_SHOWN = 8


def tiny_logits() -> dict[str, Any]:
    """Hashes of the demo models' weights, the last row's highest logits, and what the tiny model goes on with."""
    with tempfile.TemporaryDirectory() as directory:
        demo, tiny = Path(directory) / "demo", Path(directory) / "tiny"
        make_checkpoint(demo, DEMO)
        make_checkpoint(tiny, TINY)
        config = Gemma2Config.load(tiny)
        model = Gemma2Model(config, load_weights(tiny, config), torch.float32)
        values, token_ids = Solo(model, len(_PROMPT)).forward(_PROMPT)[-1].topk(_NUM_SHOWN)
        return {
            "demo_weights_sha256": sha256_of(demo / "model.safetensors"),
            "tiny_weights_sha256": sha256_of(tiny / "model.safetensors"),
            "prompt": _PROMPT,
            "top_token_ids": token_ids.tolist(),
            "top_logits": [round(value, 4) for value in values.tolist()],
            "generated": Solo(model, len(_PROMPT) + _NUM_GENERATED).generate(_PROMPT, _NUM_GENERATED),
        }


def holds(golden: dict[str, Any], actual: dict[str, Any]) -> bool:
    """Whether all is equal, logits up to the tolerance."""
    near = torch.allclose(
        torch.tensor(golden["top_logits"]), torch.tensor(actual["top_logits"]), rtol=0, atol=TOLERANCE
    )
    return near and golden | {"top_logits": None} == actual | {"top_logits": None}


def main() -> None:
    """Rewrites the file unless what it says still holds."""
    actual = tiny_logits()
    if not _TARGET.exists() or not holds(json.loads(_TARGET.read_text()), actual):
        _TARGET.write_text(json.dumps(actual, indent=2) + "\n")


if __name__ == "__main__":
    main()
