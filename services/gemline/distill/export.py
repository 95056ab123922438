"""Writes a trained model as a checkpoint that gemline serves: bfloat16 safetensors, config, tokenizer, manifest."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gemline.engine.config import Gemma2Config
from gemline.engine.manifest import write_manifest
from gemline.errors import ConfigurationError

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


def export(
    target: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    stop_token_ids: list[int],
    tokenizer: bytes,
) -> None:
    """Fills the directory, made when it is not there; `config` is what config.json is to hold.

    Raises ConfigurationError when it cannot be written.
    """
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in weights.items()}
    bos_id = config.get("bos_token_id", Gemma2Config().bos_token_id)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_json(target / "config.json", {**config, "torch_dtype": "bfloat16"})
        _write_json(target / "generation_config.json", {"bos_token_id": bos_id, "eos_token_id": stop_token_ids})
        (target / "tokenizer.json").write_bytes(tokenizer)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        write_manifest(target, list(FILES))
    except Exception as error:  # safetensors has an error of its own for a disk that is full
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigurationError(f"{target}: the model cannot be written: {reason}") from error


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
