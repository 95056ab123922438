"""Decode steps that a device computes on its own, queued ahead of their answers: what a backend may offer for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Choice:
    """How the token at `position` of a sequence is chosen, by its logits alone."""

    position: int
    temperature: float  # 0: the likeliest
    top_k: int  # 0: all
    top_p: float  # 1: all
    min_p: float  # 0: all
    seed: int  # unsigned, 64 bits


class Row(NamedTuple):
    """A sequence that lacks the keys and values of its last token only. `choice.position` is its length."""

    token_id: int
    choice: Choice


class Blocks(NamedTuple):
    """A sequence's tables; entries that are not to be read are 0."""

    of_global: Sequence[int]
    of_local: Sequence[int]


class Launched(Protocol):
    """A step that was queued."""

    def __call__(self) -> list[int | None]:
        """Waits for the token of each of its rows; None where logits were not finite."""


class Rows(Protocol):
    """Rows that stay on the device from step to step.

    A step computes the last token of every row that has a sequence, chooses the next one and makes it the last: the
    next step can be queued before this one's tokens are known. All calls come from one thread; what it queues later
    runs later.
    """

    @property
    def num_rows(self) -> int:
        """At most."""

    def put(self, rows: Mapping[int, Row]) -> None:
        """Sequences into rows, in the place of what was there; their blocks follow."""

    def set_blocks(self, tables: Mapping[int, Blocks]) -> None:
        """The whole tables of those rows. Blocks for the step to come must be among them."""

    def clear(self, rows: Sequence[int]) -> None:
        """No sequence is there any more."""

    def launch(self, num_rows: int, *, truncates: bool) -> Launched:
        """Queues a step of the first rows. `truncates`: one of them has a top_k or a top_p."""


class Decoder(Rows, Protocol):
    """One device's, which chooses other tokens too."""

    def choose(self, logits_BV: torch.Tensor, choices: Sequence[Choice]) -> list[int | None]:
        """A token for each row of logits that came another way."""
