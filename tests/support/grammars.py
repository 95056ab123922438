"""Constraints over the demo's tokenizer, and answers drawn through them without a model."""

import functools
import random

import numpy as np

from gemline.demo.tokenizer import build_tokenizer
from gemline.engine.constraint import Constraint, Matcher, Syntax
from gemline.text.tokenizer import Tokenizer

END_IDS = (1, 107)
VOCAB_SIZE = 1024


@functools.cache
def demo_tokenizer() -> Tokenizer:
    return Tokenizer.load(build_tokenizer().to_str().encode())


def schema_of(text: str) -> Constraint:
    return Constraint(Syntax.JSON_SCHEMA, text)


def regex_of(text: str) -> Constraint:
    return Constraint(Syntax.REGEX, text)


def grammar_of(text: str) -> Constraint:
    return Constraint(Syntax.GRAMMAR, text)


def allowed(mask: bytes | None) -> list[int]:
    """The ids whose bit is set."""
    assert mask is not None
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def drawn(matcher: Matcher, seed: int, max_tokens: int = 400) -> list[int]:
    """A random walk through what is allowed, as a model of random weights takes it; the end token is its last."""
    draw, token_ids = random.Random(seed), list[int]()
    while len(token_ids) < max_tokens:
        token_ids.append(draw.choice(allowed(matcher.mask())))
        if token_ids[-1] in END_IDS:
            break
        matcher.advance(token_ids[-1])
    return token_ids
