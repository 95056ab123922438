"""Keys and values of one sequence as bytes, out of one worker's cache and into another's. Knows no wire."""

from typing import NamedTuple

import torch

from gemline.engine.config import Gemma2Config
from gemline.engine.kv_cache import KvCache
from gemline.engine.sequence import Sequence
from gemline.errors import InternalError

Payload = bytes | bytearray | memoryview


class Positions(NamedTuple):
    """The half-open range [start, stop) of positions."""

    start: int
    stop: int


def kv_ranges(config: Gemma2Config, num_tokens: int) -> tuple[Positions, ...]:
    """For each layer, the positions before `num_tokens` that the token at `num_tokens` reads."""
    window_start = max(0, num_tokens - config.sliding_window + 1)
    return tuple(
        Positions(window_start if config.is_local(layer) else 0, num_tokens)
        for layer in range(config.num_hidden_layers)
    )


def export_kv(cache: KvCache, sequence: Sequence, layer: int, start: int, stop: int) -> memoryview:
    """A copy of the keys_TGK then the values_TGK of those positions, in the cache's dtype.

    Raises IndexError when one is not computed or not held.
    """
    if stop > sequence.num_computed:
        raise IndexError(f"positions [{start}, {stop}) are not computed; {sequence.num_computed} are")
    slots_T = _slots(cache, sequence, layer, start, stop)
    both = torch.cat(cache.read(layer, slots_T))
    return both.flatten().view(torch.uint8).numpy().data


def import_kv(cache: KvCache, sequence: Sequence, layer: int, start: int, stop: int, payload: Payload) -> None:
    """Writes what `export_kv` gave. Raises InternalError when the payload has not the size of those positions."""
    slots_T = _slots(cache, sequence, layer, start, stop)
    config, size = cache.config, memoryview(payload).nbytes
    both = torch.empty((2, stop - start, config.num_key_value_heads, config.head_dim), dtype=cache.dtype)
    if size != both.nbytes:
        raise InternalError(f"keys and values of [{start}, {stop}) take {both.nbytes} bytes; {size} bytes came")
    both.flatten().view(torch.uint8).numpy().data[:] = memoryview(payload).cast("B")
    cache.write(layer, slots_T, both[0], both[1])


def _slots(cache: KvCache, sequence: Sequence, layer: int, start: int, stop: int) -> torch.Tensor:
    table = sequence.local_table if cache.config.is_local(layer) else sequence.global_table
    return torch.tensor(table.slots(start, stop), dtype=torch.int64)
