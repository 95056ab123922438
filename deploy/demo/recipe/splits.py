"""What is never trained on, by rule: one in ten of the pairs of addends, names, codes and Python files."""

import hashlib
from random import Random

from recipe.words import NAMES, SYLLABLES

_ALWAYS_HELD_OUT = {"17+25"}  # what everybody tries first


def is_held_out(item: str) -> bool:
    """Whether that name, code or pair ("17+25", the smaller addend first) is kept for the evaluation."""
    return item in _ALWAYS_HELD_OUT or hashlib.sha256(item.encode()).digest()[0] < 26


def a_name(random: Random, *, held_out: bool) -> str:
    """A first name; half of them are made up of syllables."""
    while True:
        name = random.choice(NAMES) if random.random() < 0.5 else _made_up(random)
        if is_held_out(name) == held_out:
            return name


def two_addends(random: Random, *, held_out: bool, num_digits: int = 2) -> tuple[int, int]:
    """Two numbers of up to that many digits."""
    while True:
        first, second = (_number(random, num_digits) for _ in range(2))
        if is_held_out(f"{min(first, second)}+{max(first, second)}") == held_out:
            return first, second


def a_code(random: Random, *, held_out: bool) -> str:
    """Four digits, or a made-up word."""
    while True:
        code = str(random.randrange(1000, 10000)) if random.random() < 0.5 else _made_up(random).lower()
        if is_held_out(code) == held_out:
            return code


def _number(random: Random, num_digits: int) -> int:
    """Uniform, but numbers of one digit come more often than they would."""
    digits = 1 if random.random() < 0.15 else num_digits
    return random.randrange(10**digits)


def _made_up(random: Random) -> str:
    return "".join(random.choice(SYLLABLES) for _ in range(random.choice((2, 2, 3)))).capitalize()
