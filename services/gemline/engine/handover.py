"""Keys and values of sequences as bytes, out of one worker's cache and into another's. Knows no wire."""

import threading
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.config import Gemma2Config
from gemline.engine.kv_cache import DTYPES
from gemline.engine.kv_form import FLOAT8, KvForm
from gemline.engine.roster import Roster, UnknownSequence
from gemline.engine.sequence import Sequence, Status
from gemline.errors import InternalError
from gemline_kernels.reference import stored
from gemline_kernels.scales import FLOAT8_MAX, UNSCALED, Scales

Payload = bytes | bytearray | memoryview

_LEAST_SCALE = 2.0**-126  # the least normal float32: what is smaller would be divided by 0


class Positions(NamedTuple):
    """The half-open range [start, stop) of positions."""

    start: int
    stop: int


class KvStore(Protocol):
    """Keys and values of every KV head: a cache, or what ranks have of one between them."""

    config: Gemma2Config
    dtype: torch.dtype
    scales: tuple[Scales, ...]  # of each layer

    @property
    def is_in_this_memory(self) -> bool:
        """Whether copies may run in any thread."""

    def gather(self, layer: int, slots_T: torch.Tensor, heads: range, out_2TGK: torch.Tensor) -> None:
        """Copies keys, then values, of those slots and KV heads into a tensor of `dtype` in this memory."""

    def scatter(self, layer: int, slots_T: torch.Tensor, heads: range, data_2TGK: NDArray[np.uint8]) -> None:
        """Writes them, given as the bytes of `dtype`."""


class Handover:
    """An engine's door for keys and values. Where `is_for_any_thread`, copies run beside the engine's steps.

    Out: a sequence may lose its blocks, or get another one of equal content, while they are read. So what was read
    counts only if the sequence had the same blocks throughout (`_export`).

    In: each reserved sequence has a lock that is there as long as copies may land in its blocks. The engine takes the
    lock away before the sequence gives its blocks up, or begins to use them, and waits for a copy that holds it: one
    frame's. So none ever lands in what belongs to somebody else.
    """

    def __init__(self, cache: KvStore, roster: Roster) -> None:
        self._cache = cache
        self._roster = roster
        self._landings: dict[int, threading.Lock] = {}  # by seq_id

    @property
    def is_for_any_thread(self) -> bool:
        """Not with a cache on an accelerator or among ranks, whose work is queued by one thread."""
        return self._cache.is_in_this_memory

    def open(self, seq_id: int) -> None:
        """A sequence was reserved. The engine's thread alone."""
        self._landings[seq_id] = threading.Lock()

    def close(self, seq_id: int) -> None:
        """Nothing lands in its blocks from now on; fine when it has none. The engine's thread alone."""
        if (landing := self._landings.pop(seq_id, None)) is not None:
            with landing:
                pass

    def export_kv(self, seq_id: int, layer: int, at: Positions, form: KvForm, out: memoryview) -> Scales:
        """Copies the keys, then the values, of those positions into `out`, which has just their size in that form.

        From a sequence added with `hold`, while it is prefilled and after. Raises UnknownSequence when it is gone,
        IndexError when a position is not computed yet, or not any more, or has left the window.
        """
        sequence = self._roster.by_id.get(seq_id)
        if sequence is None:
            raise UnknownSequence(f"sequence {seq_id} is gone")
        return _export(self._cache, sequence, layer, at, form, out)

    def import_kv(self, seq_id: int, layer: int, at: Positions, form: KvForm, scales: Scales, payload: Payload) -> None:
        """Writes what `export_kv` gave into a reserved sequence.

        Raises UnknownSequence when it is gone, IndexError when a position is not one of its `kv_ranges`,
        InternalError when the payload has another size.
        """
        landing = self._landings.get(seq_id)
        if landing is None:
            raise UnknownSequence(f"sequence {seq_id} is not importing")
        with landing:
            if self._landings.get(seq_id) is not landing:  # closed while we waited
                raise UnknownSequence(f"sequence {seq_id} is not importing")
            sequence = self._roster.find(seq_id, Status.IMPORTING)
            _import(self._cache, sequence, layer, at, form, scales, payload)


def kv_ranges(config: Gemma2Config, num_tokens: int, start: int = 0) -> tuple[Positions, ...]:
    """For each layer, the positions in [start, num_tokens) that the token at `num_tokens` reads."""
    window_start = max(start, num_tokens - config.sliding_window + 1)
    return tuple(
        Positions(window_start if config.is_local(layer) else start, num_tokens)
        for layer in range(config.num_hidden_layers)
    )


def _export(cache: KvStore, sequence: Sequence, layer: int, at: Positions, form: KvForm, out: memoryview) -> Scales:
    """A table that gives up its blocks begins a new list of entries, and no list comes back: while it has the same list
    and the same entry there, it has held that block all the time. That the positions are computed is asked once more
    when the slots are known: what was true of an earlier list may be read for a moment after that has gone.
    """
    table = sequence.local_table if cache.config.is_local(layer) else sequence.global_table
    while True:
        _check_computed(sequence, at)
        entries, slots = table.ids(), table.slots(*at)
        _check_computed(sequence, at)
        scales = _gather(cache, layer, slots, form, out) if slots else UNSCALED
        if table.ids() is entries and table.slots(*at) == slots:
            return scales


def _import(
    cache: KvStore, sequence: Sequence, layer: int, at: Positions, form: KvForm, scales: Scales, payload: Payload
) -> None:
    if at.start < sequence.num_computed:
        raise IndexError(f"positions [{at.start}, {at.stop}) came; those before {sequence.num_computed} are there")
    table = sequence.local_table if cache.config.is_local(layer) else sequence.global_table
    slots = table.slots(*at)
    expected, size = len(slots) * form.token_bytes, memoryview(payload).nbytes
    if size != expected:
        raise InternalError(f"keys and values of [{at.start}, {at.stop}) take {expected} bytes; {size} bytes came")
    if slots:
        _scatter(cache, layer, slots, form, scales, payload)


def _check_computed(sequence: Sequence, at: Positions) -> None:
    if at.stop > sequence.num_computed:
        raise IndexError(f"positions [{at.start}, {at.stop}) are not computed; {sequence.num_computed} are")


def _gather(cache: KvStore, layer: int, slots: list[int], form: KvForm, out: memoryview) -> Scales:
    slots_T = torch.tensor(slots, dtype=torch.int64)
    # numpy holds on to the buffer: with torch's own frombuffer the memory could be unmapped while it is written to.
    out_2TGK = torch.from_numpy(np.frombuffer(out, dtype=np.uint8)).view(DTYPES[form.dtype])
    out_2TGK = out_2TGK.view(2, len(slots), len(form.heads), form.head_dim)
    if out_2TGK.dtype == cache.dtype:
        cache.gather(layer, slots_T, form.heads, out_2TGK)
        return cache.scales[layer]
    found_2TGK = torch.empty(out_2TGK.shape, dtype=cache.dtype)
    cache.gather(layer, slots_T, form.heads, found_2TGK)
    if form.dtype != FLOAT8:
        out_2TGK.copy_(_read(found_2TGK, cache.scales[layer]))
        return UNSCALED
    return Scales(*(_to_float8(found, out) for found, out in zip(found_2TGK.float(), out_2TGK, strict=True)))


def _scatter(cache: KvStore, layer: int, slots: list[int], form: KvForm, scales: Scales, payload: Payload) -> None:
    data, own = np.frombuffer(payload, dtype=np.uint8), cache.scales[layer]
    if DTYPES[form.dtype] != cache.dtype or (form.dtype == FLOAT8 and scales != own):
        data = _converted(data, form, scales, cache.dtype, own)
    slots_T = torch.tensor(slots, dtype=torch.int64)
    cache.scatter(layer, slots_T, form.heads, data.reshape(2, len(slots), len(form.heads), -1))


def _to_float8(found_TGK: torch.Tensor, out_TGK: torch.Tensor) -> float:
    """Fills `out_TGK` and gives its scale, a float32: the largest value becomes float8's largest."""
    scale = float((found_TGK.abs().amax() / FLOAT8_MAX).clamp(min=_LEAST_SCALE))
    out_TGK.copy_(stored(found_TGK, out_TGK.dtype, scale))
    return scale


def _converted(
    data: NDArray[np.uint8], form: KvForm, scales: Scales, dtype: torch.dtype, own: Scales
) -> NDArray[np.uint8]:
    """Bytes of a frame as those of a cache with scales of its own."""
    both = _read(torch.from_numpy(data.copy()).view(DTYPES[form.dtype]).view(2, -1), scales)
    parts = [stored(part, dtype, scale) for part, scale in zip(both, own, strict=True)]
    return torch.stack(parts).view(torch.uint8).numpy()


def _read(both: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Keys, then values, float32, of what is stored with those scales: 1 but for float8."""
    return both.float() * torch.tensor(scales, dtype=torch.float32).view(2, *[1] * (both.dim() - 1))
