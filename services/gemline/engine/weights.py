"""The tensors of a checkpoint, each mapped when it is asked for and let go when nobody holds it. Knows no model."""

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from gemline.engine.checkpoint import KvScaleNames, Packed, kv_scale_names, open_checkpoint, packed_matrices
from gemline.engine.config import Gemma2Config
from gemline.engine.memory import give_back_freed_memory
from gemline.engine.options import Quantization
from gemline.engine.part import Cut, Part
from gemline.engine.repacking import Repacking
from gemline.engine.tensor_file import TensorEntry, TensorFile
from gemline.engine.unpack import Region, Tensors, WrongValuesError, dequantized, int4_groups, may_be_int4_groups
from gemline.errors import CheckpointError
from gemline_kernels.quantize import Int4Groups
from gemline_kernels.scales import LEAST_SCALE, Scales

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
}
_COPIED_BYTES = 2**20  # a mapping costs a file descriptor for as long as its tensor is held: not for a norm's scales


def load_weights(
    model_dir: Path, config: Gemma2Config, quantization: Quantization = "none", part: Part | None = None
) -> "Weights":
    """The checkpoint's tensors, or a rank's part of each, by their Hugging Face names.

    Raises CheckpointError as `open_checkpoint` does.
    """
    files = open_checkpoint(model_dir, config)
    stored = {entry.name for file in files for entry in file.entries}
    return Weights(files, quantization, part, packed_matrices(config, stored), kv_scale_names(config))


class _Place(NamedTuple):
    path: Path
    entry: TensorEntry


class Weights(Mapping[str, torch.Tensor]):
    """Every tensor in the dtype it is stored in, or in float32 if that is quantised, read anew at each access.

    Who packs one matrix after the other has one of them in memory at a time, and those pages are the file's own: the
    kernel may drop them. Where the weights are to be quantized, a tensor that cannot be raises CheckpointError.
    """

    def __init__(
        self,
        files: tuple[TensorFile, ...],
        quantization: Quantization = "none",
        part: Part | None = None,
        packed: Mapping[str, Packed] | None = None,
        scales: tuple[KvScaleNames, ...] = (),
    ) -> None:
        """`packed`: the matrices that are stored as other tensors than their own. `scales`: those of keys and values,
        which are no weights.
        """
        self._stored = {entry.name: _Place(file.path, entry) for file in files for entry in file.entries}
        self._packed = packed or {}
        self.repacking = Repacking(quantization)
        hidden = {part for name, it in self._packed.items() for part in it.layout.tensors(name, *it.shape)}
        hidden |= {name for names in scales for name in names}
        self._scales = scales
        self._plain = {name: place for name, place in self._stored.items() if name not in hidden}
        self._quantization = quantization
        self._part = part

    @property
    def stored_dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes that occur among what is not quantised."""
        return frozenset(_DTYPES[place.entry.dtype] for place in self._plain.values())

    @property
    def num_parameters(self) -> int:
        """Values of all tensors together."""
        shapes = (*(place.entry.shape for place in self._plain.values()), *(it.shape for it in self._packed.values()))
        return sum(math.prod(shape) for shape in shapes)

    def __getitem__(self, name: str) -> torch.Tensor:
        give_back_freed_memory()  # of packing the one before
        # Cut before anything reads it: what other ranks have stays in the file.
        tensor = self._unpacked(name) if name in self._packed else _read(*self._plain[name])[self._cut(name)]
        if self._part is not None and not self._part.adds(name):
            tensor = torch.zeros_like(tensor)
        if self._quantization != "none" and (num_wrong := _num_not_finite(tensor)):
            raise CheckpointError(
                f"{name}: {num_wrong} values are not finite (NaN or Inf), so it cannot be quantized to"
                f" {self._quantization}"
            )
        if name in self._packed:
            self.repacking.dequantized(name, self._packed[name].layout, tensor)
        return tensor

    def int4_groups(self, name: str) -> Int4Groups | None:
        """A matrix that was stored in int4 as we keep it, if it is to be int4 and can be so. Raises CheckpointError."""
        if self._quantization != "int4" or name not in self._packed:
            return None
        layout, shape = self._packed[name]
        region = Region.of(shape, self._cut(name))
        if not may_be_int4_groups(layout, region):
            return None
        give_back_freed_memory()
        with self._named(name) as tensors:
            kept = int4_groups(layout, tensors, shape, region)
        if kept is None:
            return None
        self.repacking.kept(name, layout, kept.exact_NJ, kept.groups)
        return kept.groups

    def kv_scales(self) -> tuple[Scales, ...]:
        """Of each layer, for keys and values in fp8; empty where the checkpoint has none. Raises CheckpointError."""
        return tuple(Scales(self._scale(names.keys), self._scale(names.values)) for names in self._scales)

    def _scale(self, name: str) -> float:
        value = float(_read(*self._stored[name]))
        if not LEAST_SCALE <= value < math.inf:
            path = self._stored[name].path
            raise CheckpointError(f"{path}: tensor {name}: must be finite and at least {LEAST_SCALE:.0e}, is {value}")
        return value

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        yield from self._packed

    def __len__(self) -> int:
        return len(self._plain) + len(self._packed)

    def _cut(self, name: str) -> Cut:
        return () if self._part is None else self._part.cut(name)

    def _unpacked(self, name: str) -> torch.Tensor:
        layout, shape = self._packed[name]
        with self._named(name) as tensors:
            return dequantized(layout, tensors, shape, Region.of(shape, self._cut(name)))

    @contextmanager
    def _named(self, name: str) -> Iterator[Tensors]:
        """The tensors that stand for that matrix, by their names without its module, which errors get back."""
        module = name.removesuffix("weight")
        places = {
            stored.removeprefix(module): self._stored[stored]
            for stored in self._packed[name].layout.tensors(name, *self._packed[name].shape)
            if stored in self._stored
        }
        try:
            yield {suffix: _read(*place) for suffix, place in places.items()}
        except WrongValuesError as error:
            raise CheckpointError(f"{places[error.suffix].path}: tensor {module}{error.suffix}: {error}") from None


def _read(path: Path, entry: TensorEntry) -> torch.Tensor:
    """Memory is taken page by page, as the values are read; to change them changes a copy of their page."""
    dtype, num_bytes = _DTYPES[entry.dtype], entry.stop - entry.start
    if num_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    skipped = entry.start % mmap.ALLOCATIONGRANULARITY
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(), skipped + num_bytes, offset=entry.start - skipped, access=mmap.ACCESS_COPY
            )
    except (OSError, ValueError) as error:  # ValueError: the file has become shorter
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    raw = torch.frombuffer(mapped, dtype=torch.uint8, offset=skipped, count=num_bytes)
    if num_bytes < _COPIED_BYTES or skipped % dtype.itemsize:  # a file without padding is legal
        raw = raw.clone()
    return raw.view(dtype).view(entry.shape)


def _num_not_finite(tensor: torch.Tensor) -> int:
    """A sum that is finite proves that all values are; one that is not may have overflowed, so they are counted."""
    if tensor.sum(dtype=torch.float32).isfinite():
        return 0
    return int(tensor.numel() - tensor.isfinite().sum())
