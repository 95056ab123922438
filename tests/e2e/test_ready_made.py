"""`gemline up` on a checkpoint that somebody else has quantised: the demo model, stored as GPTQ does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ready_made_cases import CASES
from support.stack import start_stack

from gemline.client import Client, Message
from gemline.demo.shipped import SHIPPED

pytestmark = pytest.mark.slow


def stored(target: Path, name: str) -> Path:
    """The demo model with its matrices stored in that way."""
    target.mkdir()
    for file in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(SHIPPED / file, target / file)
    maker, quantization_config = CASES[name]
    config = json.loads((SHIPPED / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": quantization_config}))
    random, tensors = torch.Generator().manual_seed(0), {}
    for tensor, weight in load_file(SHIPPED / "model.safetensors").items():
        if not tensor.endswith("_proj.weight"):
            tensors[tensor] = weight
            continue
        module = tensor.removesuffix("weight")
        tensors |= {module + suffix: it for suffix, it in maker(weight.float(), random).tensors.items()}
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("name", "options", "quantization"),
    [
        ("gptq, groups of 128", ("--quantization", "int4", "--topology", "colocated"), "int4"),
        ("compressed fp8, a row", ("--tensor-parallel", "2", "--dtype", "float32"), "none"),
    ],
)
def test_it_still_knows_what_it_knew(tmp_path: Path, name: str, options: tuple[str, ...], quantization: str) -> None:
    """The second one divided, and prefilled elsewhere."""
    model = stored(tmp_path / "model", name)
    running = start_stack(tmp_path, "--runner", "process", *options, model=model)
    try:
        assert running.ready["quantization"] == quantization
        with Client(running.ready["grpc"], api_key=running.ready["api_key"], timeout_s=120) as client:
            for question, answer in (("What is 17 + 25?", "42"), ("What is the capital of Japan?", "Tokyo")):
                assert answer in client.chat([Message("user", question)], max_tokens=24, temperature=0.0).text
    finally:
        running.stop()
