"""One safetensors file: a strict header check of ours before the library maps it. Knows no model and no torch."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemline.engine.json_fields import unique_keys
from gemline.errors import CheckpointError

_LENGTH_BYTES = 8  # the header's length, little endian, opens the file
_MAX_HEADER_BYTES = 32 * 2**20
_MAX_DIMS = 8
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I8": 1, "F8_E4M3": 1}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; its bytes are [start, stop) of the file."""

    name: str
    dtype: str  # in safetensors' words: F32, BF16, I32 and so on
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An opened header. Its entries cover the rest of the file without gap or overlap, in the order of the bytes.

    The library's own checks let duplicate names and gaps pass, and its messages do not name the file.
    """

    path: Path
    header: bytes
    entries: tuple[TensorEntry, ...]

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Reads and checks the header; CheckpointError names the file, the tensor and what is wrong."""
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                _check_length(path, size, length)
                header = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        entries = sorted(_parse(path, header), key=lambda entry: (entry.start, entry.stop))
        _check_cover(path, entries, _LENGTH_BYTES + length, size)
        return cls(path, header, tuple(entries))

    def sample(self, num_bytes: int) -> bytes:
        """The first bytes of every tensor, one after the other."""
        with self.path.open("rb") as file:
            return b"".join(
                _read_at(file, entry.start, min(num_bytes, entry.stop - entry.start)) for entry in self.entries
            )


def _read_at(file: Any, start: int, num_bytes: int) -> bytes:
    file.seek(start)
    return bytes(file.read(num_bytes))


def _check_length(path: Path, size: int, length: int) -> None:
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, too short to be a safetensors file")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: the header claims {length} bytes, more than the {_MAX_HEADER_BYTES} allowed")
    if _LENGTH_BYTES + length > size:
        raise CheckpointError(f"{path}: the header claims {length} bytes, but the file has {size}: it is cut short")


def _parse(path: Path, header: bytes) -> list[TensorEntry]:
    try:
        values = json.loads(header, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object, not {type(values).__name__}")
    first_byte = _LENGTH_BYTES + len(header)
    return [_entry(path, name, value, first_byte) for name, value in values.items() if name != "__metadata__"]


def _entry(path: Path, name: str, value: Any, first_byte: int) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
            numbers = [*shape, start, stop]
        case _:
            raise CheckpointError(f"{path}: tensor {name!r:.200}: needs dtype, shape and data_offsets")
    if len(shape) > _MAX_DIMS or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise CheckpointError(f"{path}: tensor {name!r:.200}: shape and data_offsets must be small lists of sizes")
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"{path}: tensor {name!r:.200}: stored as {dtype!r:.40}, must be one of {', '.join(_ITEM_BYTES)}"
        )
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r:.200}: data_offsets [{start}, {stop}) hold {stop - start} bytes, "
            f"but {dtype} of shape {shape} takes {expected}"
        )
    return TensorEntry(name, dtype, tuple(shape), first_byte + start, first_byte + stop)


def _check_cover(path: Path, entries: list[TensorEntry], first_byte: int, size: int) -> None:
    for before, after in pairwise(entries):
        if before.stop != after.start:
            raise CheckpointError(
                f"{path}: tensor {after.name!r:.200} starts at byte {after.start}, "
                f"but {before.name!r:.200} before it stops at {before.stop}"
            )
    start, stop = (entries[0].start, entries[-1].stop) if entries else (first_byte, first_byte)
    if (start, stop) != (first_byte, size):
        raise CheckpointError(
            f"{path}: the tensors take the bytes [{start}, {stop}), but the file has [{first_byte}, {size}) for them"
        )
