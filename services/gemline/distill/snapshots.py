"""Keeps the state of a training on disk so that it can go on after any end, a full disk's too. Knows no training."""

import os
from pathlib import Path
from typing import Any

import torch

from gemline.errors import ConfigurationError

_NAME = "training.pt"


def save_snapshot(directory: Path, state: dict[str, Any]) -> None:
    """Replaces the last snapshot at once or not at all.

    Raises ConfigurationError when it cannot be written; the last one is then still there.
    """
    path, scratch = directory / _NAME, directory / f"{_NAME}.new"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as a RuntimeError
        scratch.unlink(missing_ok=True)
        kept = "the last one is kept" if path.exists() else "there is none yet"
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigurationError(f"{path}: the training's state cannot be written: {reason}; {kept}") from error


def load_snapshot(directory: Path) -> dict[str, Any] | None:
    """The last snapshot, or None. Raises ConfigurationError when there is one that cannot be read."""
    path = directory / _NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigurationError(f"{path}: not a training's state: {error}; remove it to begin anew") from error
    return state
