"""`gemline up --quantization` as a user meets it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.noise_model.checkpoint import TINY, make_checkpoint
from support.stack import start_stack

pytestmark = pytest.mark.slow

LONG = {"ignore_eos": True}


def up(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gemline.cli.main", "up", "--runner", "process", "--http-port", "0", "--grpc-port"]
    return subprocess.run([*command, "0", *options], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("quantization", "kv", "topology"), [("int8", "fp8", "split"), ("int4", "auto", "colocated")])
def test_the_demo_model_answers_over_http(tmp_path: Path, quantization: str, kv: str, topology: str) -> None:
    options = ("--quantization", quantization, "--kv-cache-dtype", kv, "--dtype", "float32", "--topology", topology)
    kv_dtype = "float8_e4m3" if kv == "fp8" else "float32"
    running = start_stack(tmp_path, "--runner", "process", *options)
    try:
        client = running.openai()
        answers = [
            client.completions.create(
                model=running.model, prompt="Once upon a time", max_tokens=16, temperature=0, extra_body=LONG
            )
            for _ in range(2)
        ]
        assert answers[0].usage is not None
        assert answers[0].usage.completion_tokens == 16
        assert answers[0].choices[0].text == answers[1].choices[0].text
        headers = {"authorization": f"Bearer {running.ready['api_key']}"}
        (model,) = httpx.get(f"{running.base_url}/models", headers=headers).json()["data"]
        assert (model["dtype"], model["quantization"], model["kv_dtype"]) == ("float32", quantization, kv_dtype)
        assert (running.ready["dtype"], running.ready["quantization"]) == ("float32", quantization)
        metrics = {it["role"]: httpx.get(f"http://{it['metrics']}/metrics").text for it in running.ready["processes"]}
        assert f'quantization="{quantization}"' in metrics["decode"]
        assert f'kv_dtype="{kv_dtype}"' in metrics["decode"]
        if topology == "split":
            assert 'gemline_prefills_total{reason="not_measured",where="remote"} ' in metrics["decode"]
    finally:
        running.stop()
    output = running.output.read_text()
    assert f"float32, {quantization} weights" in output
    assert ("float8_e4m3 keys and values" in output) == (kv == "fp8")
    assert "backend " in output


def test_an_unknown_quantization_is_refused_with_those_there_are() -> None:
    ended = up("--quantization", "int3")
    assert ended.returncode == 2
    assert all(word in ended.stderr for word in ("--quantization", "int3", "int8", "int4"))


def test_a_weight_that_cannot_be_quantized_is_named_in_one_line(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", TINY)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    ended = up("--model", str(tmp_path / "model"), "--quantization", "int8", "--ready-file", str(tmp_path / "r.json"))
    assert ended.returncode == 1
    assert "model.layers.1.mlp.up_proj.weight: 1 values are not finite" in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
