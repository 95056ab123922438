"""Where a prompt is prefilled: here, in the running batch, or there, by a prefill worker. A pure function."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

PrefillMode = Literal["auto", "always", "never"]

# What is computed here in less than this is not worth a call, nor felt by a stream: about one frame of a film.
_SHORT_S = 0.05
# Streams are spared by going there, unless that takes so many times as long as the paced prefill here.
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Here:
    """What the prompt would meet in this engine."""

    num_missing: int  # tokens that its prefix cache lacks
    num_queued: int  # tokens of prompts before it
    num_streams: int  # sequences that decode
    tokens_per_s: float | None  # of a prompt, beside those streams; None while nothing was measured


@dataclass(frozen=True, slots=True)
class There:
    """And on the prefill worker that would have it."""

    num_tokens: int  # of the prompt: whether some are cached there is not known
    num_queued: int
    tokens_per_s: float | None


class Placement(NamedTuple):
    """The choice, and what decided it: both are labels of a metric."""

    is_remote: bool
    reason: Literal["asked", "no_worker", "short", "spares_streams", "sooner_here", "sooner_there", "not_measured"]


def place(mode: PrefillMode, here: Here, there: There | None) -> Placement:
    """By what was measured, whichever gives the first token sooner; but streams here are not slowed down for little.

    `there` is None when no prefill worker could be asked.
    """
    if there is None:
        return Placement(False, "no_worker")
    if mode != "auto":
        return Placement(mode == "always", "asked")
    if here.tokens_per_s is None or there.tokens_per_s is None:
        return Placement(True, "not_measured")
    if here.num_missing / here.tokens_per_s <= _SHORT_S:
        return Placement(False, "short")
    here_s = (here.num_queued + here.num_missing) / here.tokens_per_s
    there_s = (there.num_queued + there.num_tokens) / there.tokens_per_s
    if here.num_streams and there_s <= _PATIENCE * here_s:
        return Placement(True, "spares_streams")
    return Placement(False, "sooner_here") if here_s <= there_s else Placement(True, "sooner_there")
