"""Reads typed, range-checked values out of a checkpoint's JSON files. Knows no particular key."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemline.errors import CheckpointError

_T = TypeVar("_T")
_MAX_JSON_BYTES = 64 * 2**20  # the index of a large sharded checkpoint takes well under one MiB


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError on a repeated key, of which Python alone would keep the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} occurs twice")
        found[key] = value
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in that file; CheckpointError names the file and what is wrong with it."""
    try:
        if (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, more than the {_MAX_JSON_BYTES} allowed")
        value = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


class JsonFields:
    """The keys of one JSON object; an absent key gives the default, a wrong value CheckpointError with file and key."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self._path = path
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def unknown(self, known: Collection[str]) -> list[str]:
        """The keys with a value that are not among those."""
        return [key for key in self._values if key in self and key not in known]

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null."""
        return key in self._values and self._values[key] is None

    def raw(self, key: str) -> Any:
        """The value as JSON has it; None when absent or null."""
        return self._values.get(key)

    def fail(self, key: str, message: str) -> CheckpointError:
        """The error for that key, to be raised."""
        return CheckpointError(f"{self._path}: {self._prefix}{key}: {message}")

    def integer(self, key: str, default: int, start: int, stop: int) -> int:
        """An integer in [start, stop)."""
        value = default if self.raw(key) is None else self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int) or not start <= value < stop:
            raise self.fail(key, f"must be an integer from {start} to {stop - 1}, is {_shown(value)}")
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number over 0."""
        value = default if self.raw(key) is None else self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite_positive(value):
            raise self.fail(key, f"must be a finite number over 0, is {_shown(value)}")
        return float(value)

    def optional_positive(self, key: str, default: float | None) -> float | None:
        """A finite number over 0, or None for an explicit null; the default when the key is absent."""
        if key not in self._values:
            return default
        return None if self.raw(key) is None else self.positive(key, 0.0)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self._typed(key, default, bool, "true or false")

    def text(self, key: str, default: str) -> str:
        """A string."""
        return self._typed(key, default, str, "a string")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent or null."""
        value = self.raw(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in listed):
            raise self.fail(key, f"must be a token id or a list of them, is {_shown(value)}")
        return tuple(listed)

    def section(self, key: str) -> "JsonFields":
        """The object under that key; an empty one when absent or null."""
        return JsonFields(self._path, self._typed(key, {}, dict, "an object"), f"{self._prefix}{key}.")

    def as_dict(self) -> dict[str, Any]:
        """All keys and values as JSON has them."""
        return dict(self._values)

    def _typed(self, key: str, default: _T, kind: type[_T], described: str) -> _T:
        value = default if self.raw(key) is None else self.raw(key)
        if not isinstance(value, kind):
            raise self.fail(key, f"must be {described}, is {_shown(value)}")
        return value


def _finite_positive(value: float) -> bool:
    try:
        return 0 < float(value) < math.inf
    except OverflowError:  # an integer that no float can hold
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
