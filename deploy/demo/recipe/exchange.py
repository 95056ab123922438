"""A question, its answer, and what a conversation remembers. Knows no task."""

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple


class Exchange(NamedTuple):
    """What the user says and what the model is to answer. `task` names the row of the scores it belongs to."""

    task: str
    question: str
    answer: str


@dataclass
class Talk:
    """A conversation while it is made: its source of chance, its split, and the facts that the user has told."""

    random: Random
    held_out: bool
    facts: dict[str, str] = field(default_factory=dict)  # the user's own: "name", "city", ...
    others: dict[str, dict[str, str]] = field(default_factory=dict)  # other people's, by name

    def pick(self, *phrases: str) -> str:
        """One of them."""
        return self.random.choice(phrases)
