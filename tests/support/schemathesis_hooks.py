"""Loaded by schemathesis itself: brings many generated requests past what a document cannot say, as far as an answer.

What is there comes as JSON in GEMLINE_THERE: names of path parameters and body fields, with values. Requests that the
generator broke on purpose stay as they are.
"""

import json
import os
import zlib
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

_THERE: dict[str, str] = json.loads(os.environ["GEMLINE_THERE"])
_MAX_TOKENS = 2
_ONCE = "Idempotency-Key"
_NEEDS = {"stream_options": "stream", "tool_choice": "tools", "top_logprobs": "logprobs"}  # fields of no use alone


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Three of four requests that are meant to be right name what is there; chats have a question of the user's."""
    if case.meta is None:
        return
    headers = case.meta.components.get(ParameterLocation.HEADER)
    if headers is not None and headers.mode.is_positive and _ONCE in case.headers:
        case.headers[_ONCE] = str(case.id)  # a key that comes again would be all that is looked at
    if not case.meta.generation.mode.is_positive or not _is_chosen(case.body):
        return
    if case.method.upper() != "DELETE" and case.path_parameters:
        case.path_parameters = {name: _THERE.get(name, value) for name, value in case.path_parameters.items()}
    if isinstance(case.body, dict):
        case.body = _answerable(case.path, case.body)


def _answerable(path: str, body: dict[str, Any]) -> dict[str, Any]:
    changed = dict(body)
    if body.get("model"):
        changed["model"] = _THERE["model"]
    if "completions" in path:
        changed |= {"max_tokens": _MAX_TOKENS, "max_completion_tokens": None, "tools": None, "response_format": None}
    if path.endswith("chat/completions"):
        changed["messages"] = [{"role": "user", "content": "Hello"}]
    given = {name: value for name, value in changed.items() if value is not None}
    changed = {name: value for name, value in given.items() if name not in _NEEDS or given.get(_NEEDS[name])}
    return changed if _can_be_sent(changed) else body


def _can_be_sent(body: object) -> bool:
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_chosen(*values: object) -> bool:
    """The same for the same values, so that a seed repeats a run."""
    return zlib.crc32(repr(values).encode("utf-8", "replace")) % 4 > 0
