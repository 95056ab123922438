"""The tensors of a checkpoint of noise, made by rule from a seed. Knows no file."""

import math
from collections.abc import Iterator

import numpy as np
from support.noise_model.bigrams import Followers
from support.noise_model.noise import Array, uniform
from support.noise_model.shape import DemoShape

from gemline.engine.config import Gemma2Config

_SCORE_RMS = 10.0  # of query . key * scale: now and then one is near the soft-cap of 50
_BIGRAM_LOGIT_GAIN = 3.0  # what the final norm multiplies by, with bigrams
_NOISE_LOGIT_GAIN = 6.0  # without
_QUIET = 0.3  # embedding of a token that is read, never written
_BIGRAM_RMS = 2.0  # what the first MLP adds, where every other sublayer adds 1
_SELF_REMOVAL = 0.6  # of the token itself, against its followers, so that it is not its own follower
_KEY_GAIN = 0.5  # of a gate, over the direction of its token
_FIRST_ATTENTION_RMS = 0.3  # small, so that the first MLP still reads the token itself


def make_weights(
    shape: DemoShape, config: Gemma2Config, quiet_tokens: list[int], followers: Followers, seed: int
) -> Iterator[tuple[str, Array]]:
    """Every tensor in the order of `parameter_shapes`; without followers all but the scales is noise."""
    embedding = _embedding(shape, config, quiet_tokens, seed)
    written = _bigram_mlp(config, embedding / np.float32(_embedding_rms(shape)), followers) if followers else {}
    written |= _norm_scales(config, followers)
    written["model.embed_tokens.weight"] = embedding
    for name, sizes in config.parameter_shapes().items():
        if name in written:
            yield name, written[name]
        else:
            yield name, uniform(seed, name, sizes, _rms(shape, config, name, sizes))


def _embedding_rms(shape: DemoShape) -> float:
    return shape.embedding_rms / math.sqrt(shape.hidden_size)


def _embedding(shape: DemoShape, config: Gemma2Config, quiet_tokens: list[int], seed: int) -> Array:
    embedding = uniform(seed, "embedding", (config.vocab_size, config.hidden_size), _embedding_rms(shape))
    embedding[quiet_tokens] *= np.float32(_QUIET)
    return embedding


def _rms(shape: DemoShape, config: Gemma2Config, name: str, sizes: tuple[int, ...]) -> float:
    """Keeps what a layer reads and writes about 1 wide, and attention scores _SCORE_RMS wide."""
    if name.endswith("norm.weight"):
        return 0.1
    projection = math.sqrt(_SCORE_RMS / (config.attention_scale * math.sqrt(config.head_dim)))
    gain = projection if "q_proj" in name or "k_proj" in name else 1.0
    return gain / math.sqrt(sizes[-1])


def _norm_scales(config: Gemma2Config, followers: Followers) -> dict[str, Array]:
    """Norm weights w act as 1 + w."""
    width = (config.hidden_size,)
    if not followers:
        # A logit is then about as wide as the norm's scale times the embedding's RMS in the stream.
        return {"model.norm.weight": np.full(width, _NOISE_LOGIT_GAIN - 1, np.float32)}
    return {
        "model.norm.weight": np.full(width, _BIGRAM_LOGIT_GAIN - 1, np.float32),
        "model.layers.0.post_attention_layernorm.weight": np.full(width, _FIRST_ATTENTION_RMS - 1, np.float32),
        "model.layers.0.post_feedforward_layernorm.weight": np.full(width, _BIGRAM_RMS - 1, np.float32),
    }


def _bigram_mlp(config: Gemma2Config, directions: Array, followers: Followers) -> dict[str, Array]:
    """The first layer's MLP as a table: hidden unit u opens at its token and writes the directions of its followers.

    Directions of different tokens are nearly orthogonal, so gate times up is far larger at the unit's own token.
    """
    tokens = list(followers)[: config.intermediate_size]
    keys = np.zeros((config.intermediate_size, config.hidden_size), np.float32)
    written = np.zeros((config.hidden_size, config.intermediate_size), np.float32)
    for unit, token in enumerate(tokens):
        keys[unit] = directions[token] * np.float32(_KEY_GAIN / math.sqrt(config.hidden_size))
        written[:, unit] = -np.float32(_SELF_REMOVAL) * directions[token]
        for follower, weight in followers[token]:
            written[:, unit] += np.float32(weight) * directions[follower]
    prefix = "model.layers.0.mlp."
    return {f"{prefix}gate_proj.weight": keys, f"{prefix}up_proj.weight": keys, f"{prefix}down_proj.weight": written}
