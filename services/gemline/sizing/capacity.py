"""How many tokens a GPU has room for behind its weights."""

from contextlib import suppress
from typing import NamedTuple

from gemline.engine.footprint import Footprint
from gemline.errors import ConfigurationError
from gemline.sizing.forms import WEIGHTS
from gemline.sizing.gpus import GPUS, Gpu

RESERVED_BYTES = int(3.5 * 2**30)  # the driver's context, workspaces, graphs, logits
_DEGREES = (1, 2, 4, 8, 16)


class Capacity(NamedTuple):
    """Of one rank's GPU."""

    weight_bytes: int
    free_bytes: int  # for keys and values; below 0: so much is missing

    def num_sequences(self, shard: Footprint, context: int) -> int:
        """Of that length each, windows cut."""
        return max(0, self.free_bytes) // shard.sequence_bytes(context)

    def num_tokens(self, shard: Footprint) -> int:
        """Of sequences no longer than a window, which keep everything."""
        return max(0, self.free_bytes) // shard.sequence_bytes(1)


def capacity(shard: Footprint, gpu: Gpu) -> Capacity:
    """What is left beside the weights."""
    return Capacity(shard.weight_bytes, gpu.memory_bytes - RESERVED_BYTES - shard.weight_bytes)


def what_fits(shard: Footprint, gpu: Gpu, context: int) -> list[tuple[Footprint, Gpu]]:
    """For each form of weights the fewest ranks on that GPU that hold one context; then other GPUs as it is."""
    found: list[tuple[Footprint, Gpu]] = []
    for form in WEIGHTS:
        for num_ranks in _DEGREES:
            with suppress(ConfigurationError):  # it cannot be divided so
                other = Footprint(shard.config, form, shard.cache, num_ranks)
                if capacity(other, gpu).num_sequences(other, context):
                    found.append((other, gpu))
                    break
    return found + [(shard, other) for other in GPUS.values() if capacity(shard, other).num_sequences(shard, context)]
