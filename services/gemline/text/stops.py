"""Stop strings in a stream of text. Knows no tokens."""

from collections.abc import Iterable
from typing import NamedTuple


class Scanned(NamedTuple):
    """What may be shown of the text so far, and the stop string that ended it."""

    text: str
    matched: str | None


class StopMatcher:
    """Finds the stop string that is complete first (the longest of those), however the text is cut into pieces.

    Holds back only what could be the beginning of a stop string. Costs O(1) per character and stop string.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        unique = {stop for stop in stops if stop}
        self._patterns = [_Pattern(stop) for stop in sorted(unique, key=lambda stop: (-len(stop), stop))]
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> Scanned:
        """What may be shown now; after a match, nothing more is."""
        if self._matched is not None or not self._patterns:
            return Scanned("" if self._matched else text, self._matched)
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            if stop := self._advance(character):
                self._matched, self._held = stop, ""
                return Scanned(seen[: end - len(stop)], stop)
        shown = len(seen) - max(pattern.num_matched for pattern in self._patterns)
        self._held = seen[shown:]
        return Scanned(seen[:shown], None)

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """The longest stop string that `character` completes. Every pattern moves, even after a longer one is found."""
        complete = [pattern.stop for pattern in self._patterns if pattern.advance(character)]
        return complete[0] if complete else None


class _Pattern:
    """One stop string and how much of its beginning the text ends with (Knuth, Morris and Pratt, 1977)."""

    __slots__ = ("_borders", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._borders = _borders(stop)

    def advance(self, character: str) -> bool:
        """Whether `character` completes the stop string."""
        self.num_matched = _next(self.stop, self._borders, self.num_matched, character)
        return self.num_matched == len(self.stop)


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its end."""
    borders = [0]
    for character in stop[1:]:
        borders.append(_next(stop, borders, borders[-1], character))
    return borders


def _next(stop: str, borders: list[int], num_matched: int, character: str) -> int:
    while num_matched and stop[num_matched] != character:
        num_matched = borders[num_matched - 1]
    return num_matched + (stop[num_matched] == character)
