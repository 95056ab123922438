"""Random numbers that depend on (seed, position) alone: the same on every worker, in every batch, after a replay.

Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from typing import NamedTuple

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_NUM_ROUNDS = 10


class Words(NamedTuple):
    """Four unsigned 32-bit words."""

    a: int
    b: int
    c: int
    d: int


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four words that look random, one block for each counter, one stream for each key."""
    a, b, c, d = counter
    key_0, key_1 = key
    for _ in range(_NUM_ROUNDS):
        product_0 = _MULTIPLIERS[0] * a
        product_1 = _MULTIPLIERS[1] * c
        a, b, c, d = (
            (product_1 >> 32) ^ b ^ key_0,
            product_1 & _MASK,
            (product_0 >> 32) ^ d ^ key_1,
            product_0 & _MASK,
        )
        key_0 = (key_0 + _WEYL[0]) & _MASK
        key_1 = (key_1 + _WEYL[1]) & _MASK
    return Words(a, b, c, d)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a multiple of 2**-53, for the token at `position` of a sequence with that 64-bit seed."""
    counter = Words(position & _MASK, position >> 32 & _MASK, 0, 0)
    words = philox(counter, (seed & _MASK, seed >> 32 & _MASK))
    return ((words.a << 32 | words.b) >> 11) * 2.0**-53
