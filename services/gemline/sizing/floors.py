"""The least time of a step on given GPUs: every operation's bytes over bandwidth or its work over peak, one by one.

Launches, tails, sampling and the host cost nothing here, so real steps are slower. Weight-only forms compute in
bfloat16. Ranks add up their parts twice a layer, over the links, in a ring.
"""

from typing import NamedTuple

from gemline.engine.config import LayerKind
from gemline.engine.footprint import Footprint
from gemline.sizing.gpus import Gpu


class Floor(NamedTuple):
    """Seconds by part."""

    linear_s: float
    head_s: float
    attention_s: float
    links_s: float

    @property
    def step_s(self) -> float:
        """Of all, one after the other."""
        return sum(self)


def decode_floor(shard: Footprint, gpu: Gpu, num_streams: int, context: int) -> Floor:
    """A step of so many streams with one new token each behind so many others."""
    config = shard.config
    read_bytes = shard.linear_bytes + shard.norm_bytes
    seen = context * config.num_global_layers + min(context, config.sliding_window) * config.num_local_layers
    attention_flops = 4 * shard.own.num_attention_heads * config.head_dim * seen * num_streams
    return Floor(
        max(read_bytes / gpu.bytes_per_s, 2 * shard.linear_size * num_streams / gpu.flops),
        max(shard.embedding_bytes / gpu.bytes_per_s, 2 * shard.embedding.size * num_streams / gpu.flops),
        max(num_streams * shard.sequence_bytes(context) / gpu.bytes_per_s, attention_flops / gpu.flops),
        _links_s(shard, gpu, num_streams),
    )


def prefill_floor(shard: Footprint, gpu: Gpu, num_tokens: int) -> Floor:
    """A prompt of so many tokens from nothing, at once; only its last row is given a token."""
    config = shard.config
    scores = shard.own.num_attention_heads * sum(
        config.num_layers_of(kind) * _num_seen(num_tokens, config.sliding_window if kind is LayerKind.LOCAL else None)
        for kind in LayerKind
    )
    return Floor(
        max(shard.linear_bytes / gpu.bytes_per_s, 2 * shard.linear_size * num_tokens / gpu.flops),
        shard.embedding_bytes / gpu.bytes_per_s,
        4 * config.head_dim * scores / gpu.flops,
        _links_s(shard, gpu, num_tokens),
    )


def _num_seen(num_tokens: int, window: int | None) -> int:
    """Keys that the queries of a prompt see, all together."""
    if window is None or num_tokens <= window:
        return num_tokens * (num_tokens + 1) // 2
    return window * (window + 1) // 2 + (num_tokens - window) * window


def _links_s(shard: Footprint, gpu: Gpu, num_rows: int) -> float:
    """Each of two sums a layer takes every rank 2 (n - 1) / n times the rows' bytes, sent and received at once."""
    num_bytes = 2 * shard.config.num_hidden_layers * num_rows * shard.config.hidden_size * 2
    return 2 * (shard.num_ranks - 1) / shard.num_ranks * num_bytes / gpu.link_bytes_per_s
