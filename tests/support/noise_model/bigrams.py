"""Which tokens follow which in text made of the demo tokenizer's words, so that a demo model's text looks like some."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
from support.noise_model.noise import uniform
from tokenizers import Tokenizer

from gemline.demo.words import WORDS

_NUM_SENTENCES = 900
_MIN_WORDS, _MAX_WORDS = 3, 9
_MAX_FOLLOWERS = 8
_LINE_END, _TURN_END = "\n", "<end_of_turn>"

Followers = dict[int, list[tuple[int, float]]]


def followers_of(tokenizer: Tokenizer, seed: int) -> Followers:
    """The likeliest followers of each token and their weights, squares of which sum to 1."""
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for sentence in _sentences(tokenizer, seed):
        for token, follower in pairwise(tokenizer.encode(sentence, add_special_tokens=False).ids):
            counts[token][follower] += 1
    return {token: _weighted(followers) for token, followers in sorted(counts.items())}


def _sentences(tokenizer: Tokenizer, seed: int) -> list[str]:
    """Lines of a few words each; half of them end the turn, the others go on.

    Words of one token only: pieces that many words share would lead from the middle of one into another.
    """
    words = [word for word in WORDS[2:] if _num_tokens(tokenizer, f" {word}") == 1]  # without `user` and `model`
    openers = [word for word in words if _num_tokens(tokenizer, word) == 1]
    draws = uniform(seed, "sentences", (_NUM_SENTENCES, _MAX_WORDS + 2), rms=3**-0.5)  # in [-1, 1)
    sentences = []
    for ending, length, *ranks in np.abs(draws).tolist():
        num_words = _MIN_WORDS + int(length * (_MAX_WORDS - _MIN_WORDS))
        chosen = [_picked(openers, ranks[0]), *(_picked(words, rank) for rank in ranks[1:num_words])]
        end = _TURN_END if ending < 0.5 else f" {_picked(words, 2 * ending - 1)}"
        sentences.append(f"{_LINE_END}{' '.join(chosen)}.{end}")
    return sentences


def _picked(words: list[str], fraction: float) -> str:
    return words[int(fraction * (len(words) - 1))]


def _num_tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _weighted(followers: Counter[int]) -> list[tuple[int, float]]:
    """A flat weighting: what later sublayers add then decides between the followers, so that context matters."""
    kept = sorted(followers.items(), key=lambda item: (-item[1], item[0]))[:_MAX_FOLLOWERS]
    return [(token, 1 / math.sqrt(len(kept))) for token, _ in kept]
