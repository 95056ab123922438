"""One finding of `gemline doctor`, and how a check that raises becomes one."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from gemline.errors import GemlineError


class Outcome(Enum):
    """Whether gemline works with what was found."""

    OK = "ok"
    WARNING = "warning"  # it works, with less
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    outcome: Outcome
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name, Outcome.OK, found)


def warning(name: str, found: str, advice: str) -> Check:
    """It works, with less."""
    return Check(name, Outcome.WARNING, found, advice)


def failure(name: str, found: str, advice: str) -> Check:
    """It does not work."""
    return Check(name, Outcome.FAILURE, found, advice)


def attempt(name: str, look: Callable[[], Check], advice: str = "") -> Check:
    """The check's own finding; an exception is a failure, told in its words: the doctor outlives every patient."""
    try:
        return look()
    except GemlineError as error:
        return failure(name, error.message, advice)
    except Exception as error:
        return failure(name, f"{type(error).__name__}: {error}", advice)
