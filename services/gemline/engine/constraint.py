"""What a constrained answer must look like, and what the engine asks of whoever can read that. Knows no grammar."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Syntax(Enum):
    """The language that a constraint is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"  # Lark's, as llguidance reads it


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule that the whole text of an answer follows, as its user wrote it."""

    syntax: Syntax
    text: str
    param: str = "response_format"  # the field that is at fault when it cannot be followed
    lenient: bool = False  # keywords of a schema that are not understood are passed over


class Matcher(Protocol):
    """One answer's way through its constraint, token by token. The engine's thread calls it; none of it takes long."""

    @property
    def param(self) -> str:
        """The request's field that the constraint came from."""

    @property
    def failure(self) -> str | None:
        """Why the answer cannot go on, for the user; None while it can."""

    def mask(self) -> bytes | None:
        """One bit for each token, the first token's the lowest of the first byte: set where it may come next.

        A model's own end tokens may come only where the answer may end. None when it has failed.
        """

    def advance(self, token_id: int) -> None:
        """That token came next."""
