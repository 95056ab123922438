"""Pieces of this Python's own standard library, to be continued as raw text."""

import sysconfig
from functools import cache
from pathlib import Path
from random import Random

from recipe.splits import is_held_out

_MOST_BYTES = 60_000
_PACKAGES = (
    "",
    "json",
    "collections",
    "email",
    "http",
    "logging",
    "urllib",
    "importlib",
    "concurrent/futures",
    "asyncio",
)


@cache
def sources(*, held_out: bool) -> tuple[str, ...]:
    """The files of that split, in the order of their names; ASCII only, and none that is very long."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for package in _PACKAGES for path in (root / package).glob("*.py"))
    wanted = [path for path in paths if path.stat().st_size < _MOST_BYTES and is_held_out(path.name) == held_out]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in wanted)
    return tuple(text for text in texts if text.isascii() and len(text) > 500)


def a_piece(random: Random, num_characters: int, *, held_out: bool) -> str:
    """Some lines of one file, begun at the start of a line; long files come as often as their length says."""
    files = sources(held_out=held_out)
    (text,) = random.choices(files, weights=[len(file) for file in files])
    start = text.find("\n", random.randrange(len(text))) + 1
    return text[start : start + num_characters]
