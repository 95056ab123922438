"""The ready file: where everything is. `gemline up` writes it once it can serve; scripts and `gemline chat` read it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process of a stack."""

    role: str
    pid: int
    address: str  # host:port
    metrics: str  # host:port of its /metrics
    backend: str = ""  # what its engine computes with; empty where there is none


@dataclass(frozen=True, slots=True)
class Ready:
    """Addresses and key of a stack that serves."""

    http: str  # URL
    grpc: str  # host:port
    api_key: str  # empty when the operator brought a key file
    model: str
    redis_url: str
    log_dir: str
    processes: tuple[ProcessInfo, ...]
    dtype: str = ""  # of activations
    quantization: str = ""  # of the weights
    kv_dtype: str = ""  # of keys and values
    admin: str = ""  # URL of the admin API; empty: there is none
    admin_key: str = ""  # empty when the operator brought one

    def write(self, path: Path) -> None:
        """Write it as JSON in one piece, for its owner's eyes alone: it holds a key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(self._text())
        draft.replace(path)

    def remove(self, path: Path) -> None:
        """Remove it, unless a newer stack has written its own there."""
        if path.exists() and path.read_text() == self._text():
            path.unlink(missing_ok=True)

    def _text(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"
