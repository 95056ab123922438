"""Keeps the state of a training on disk so that it can go on after any end, a full disk's too. Knows no training.

A snapshot is one safetensors file: its tensors by their path in the state, everything else as JSON in its header. So
nothing in it can run, whoever wrote it; tuples come back as lists, and numbers that were keys as text.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from gemline.errors import ConfigurationError

_NAME = "training.safetensors"
_TENSOR = "$tensor"  # stands in the JSON where a tensor was


def save_snapshot(directory: Path, state: Mapping[str, Any]) -> None:
    """Replaces the last snapshot at once or not at all.

    Raises ConfigurationError when it cannot be written; the last one is then still there.
    """
    path, scratch = directory / _NAME, directory / f"{_NAME}.new"
    tensors: dict[str, torch.Tensor] = {}
    plain = json.dumps(_without_tensors(state, "", tensors))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(save(tensors, {"state": plain}))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        kept = "the last one is kept" if path.exists() else "there is none yet"
        raise ConfigurationError(f"{path}: the training's state cannot be written: {error.strerror}; {kept}") from error


def load_snapshot(directory: Path) -> dict[str, Any] | None:
    """The last snapshot, or None. Raises ConfigurationError when there is one that cannot be read."""
    path = directory / _NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            plain = json.loads(file.metadata()["state"])
        state: dict[str, Any] = _with_tensors(plain, tensors)
    except Exception as error:  # the library raises a kind of its own, and what is missing gives others
        raise ConfigurationError(f"{path}: not a training's state: {error}; remove it to begin anew") from error
    return state


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(one, f"{path}/{key}", tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(one, f"{path}/{index}", tensors) for index, one in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _with_tensors(one, tensors) for key, one in value.items()}
    return [_with_tensors(one, tensors) for one in value] if isinstance(value, list) else value
