"""How large a model's keys and values are, by one short forward pass: what an fp8 cache divides them by, where the
checkpoint does not say it.

A scale is a power of two: to divide and multiply by it is exact, so nothing but e4m3's own rounding is lost, in a
kernel as in the reference, and where two caches' scales differ. And workers and ranks, whose sums are rounded in
another order, come to the same one, but for a largest value at the very edge between two.
"""

import math
from dataclasses import replace
from typing import Protocol

import torch

from gemline.engine.batch import Batch
from gemline.engine.blocks import num_blocks_for
from gemline.engine.config import Gemma2Config
from gemline.engine.kv_cache import DTYPES, KvCache
from gemline.engine.options import EngineOptions
from gemline.engine.ranks import Ranks
from gemline.errors import CheckpointError
from gemline_kernels.scales import FLOAT8_MAX, LEAST_SCALE, Scales

# Other texts have larger values, which would be cut off at 448. Room for four times the largest found, and up to eight
# by the power of two, costs no precision but of the smallest values: e4m3 keeps its three bits down to 2^-6, so with
# the largest found at 56 and more all from a 3584th of it on have them.
HEADROOM = 4.0
NUM_TOKENS = 128


class Forward(Protocol):
    """The part of a model that is asked here."""

    @property
    def device(self) -> torch.device:
        """Where its cache has to be."""

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Writes the batch's keys and values into the cache."""


def measure_scales(
    model: Forward, config: Gemma2Config, options: EngineOptions, ranks: Ranks | None
) -> tuple[Scales, ...]:
    """Of each layer, for a cache with that config's heads. All ranks ask at a time, and agree by the largest.

    Raises CheckpointError for keys or values that are not finite.
    """
    num_tokens = min(NUM_TOKENS, config.max_position_embeddings)
    num_blocks = num_blocks_for(num_tokens, options.block_size)
    cache = KvCache(config, num_blocks, num_blocks, options.block_size, DTYPES[options.dtype], model.device)
    batch = _batch(config, num_tokens, num_blocks)
    with torch.inference_mode():
        model.forward(batch, cache)
        largest_L2 = torch.stack([_largest(cache, layer, num_tokens) for layer in range(config.num_hidden_layers)])
        if ranks is not None:
            largest_L2 = ranks.gather(largest_L2).amax(0)
    if not largest_L2.isfinite().all():
        layer = int((~largest_L2.isfinite()).any(1).nonzero()[0])
        raise CheckpointError(f"keys or values of layer {layer} are not finite: no fp8 cache can hold them")
    return tuple(Scales(scale_of(keys), scale_of(values)) for keys, values in largest_L2.tolist())


def scale_of(largest: float) -> float:
    """The least power of two with which HEADROOM times that value is not beyond float8's largest; 1 for 0."""
    if not largest:
        return 1.0
    return max(LEAST_SCALE, 2.0 ** math.ceil(math.log2(largest * HEADROOM / FLOAT8_MAX)))


def _largest(cache: KvCache, layer: int, num_tokens: int) -> torch.Tensor:
    """Magnitude among the keys, and among the values."""
    found = cache.read(layer, torch.arange(num_tokens))
    return torch.stack([found.keys.abs().amax(), found.values.abs().amax()]).float()


def _batch(config: Gemma2Config, num_tokens: int, num_blocks: int) -> Batch:
    """One sequence: <bos>, then tokens from all over the vocabulary, the same each time."""
    positions_T = torch.arange(num_tokens)
    token_ids_T = positions_T * round(config.vocab_size * (math.sqrt(5) - 1) / 2) % config.vocab_size  # golden steps
    token_ids_T[0] = config.bos_token_id
    return replace(Batch.of_one(token_ids_T, num_blocks), sample_rows=positions_T[-1:])  # nobody reads logits
