"""Loaded by schemathesis itself: lets most generated requests name what is really there, so that they get past 404.

What is there comes as JSON in GEMLINE_THERE: names of path parameters and body fields, with their values. A value that
the generator broke on purpose stays broken: only a text that could stand there is replaced.
"""

import json
import os
import zlib
from typing import Any

import schemathesis

_THERE: dict[str, str] = json.loads(os.environ["GEMLINE_THERE"])
_MAX_TOKENS = 2


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Three of four name what is there, unless it is to be deleted."""
    if not isinstance(path_parameters, dict) or context.operation.method.upper() == "DELETE":
        return path_parameters
    return {name: _THERE.get(name, value) if _is_chosen(value) else value for name, value in path_parameters.items()}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """The model is one that is served; answers are short."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    model = body.get("model")
    if isinstance(model, str) and model and _is_chosen(model):
        changed["model"] = _THERE["model"]
    if "completions" in context.operation.path and body.get("max_tokens", None) is None:
        changed["max_tokens"] = _MAX_TOKENS
    return changed


def _is_chosen(value: object) -> bool:
    """The same for the same value, so that a seed repeats a run."""
    return zlib.crc32(repr(value).encode("utf-8", "replace")) % 4 > 0
