"""Reads the ready file that `gemline up` writes: where the newest stack of this machine is, and a key for it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemline.cache import cache_dir
from gemline.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ReadyStack:
    """What a client needs to know of a stack that serves."""

    path: Path
    http: str  # URL
    grpc: str  # host:port
    api_key: str | None
    model: str
    redis_url: str = ""


def default_ready_file() -> Path:
    """The path $GEMLINE_READY_FILE, else ready.json in $GEMLINE_CACHE, else in ~/.cache/gemline."""
    if path := os.environ.get("GEMLINE_READY_FILE"):
        return Path(path)
    return cache_dir() / "ready.json"


def read_ready(path: Path, instead: str = "--address HOST:PORT") -> ReadyStack:
    """What the file says; raises ConfigurationError naming the file when it is missing or damaged.

    `instead`: the option that does without it, for the message.
    """
    try:
        fields = json.loads(path.read_bytes())
        return _parse(path, fields)
    except FileNotFoundError:
        raise ConfigurationError(
            f"no stack is ready on this machine ({path} is missing): run `gemline up`, or give {instead}"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"ready file {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigurationError(f"ready file {path}: not the JSON that `gemline up` writes") from None
    except KeyError as error:
        raise ConfigurationError(f"ready file {path}: field {error} is missing") from None


def _parse(path: Path, fields: dict[str, Any]) -> ReadyStack:
    return ReadyStack(
        path=path,
        http=str(fields["http"]),
        grpc=str(fields["grpc"]),
        api_key=str(fields["api_key"]) if fields.get("api_key") else None,
        model=str(fields.get("model", "")),
        redis_url=str(fields.get("redis_url", "")),
    )
