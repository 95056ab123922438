"""A vocabulary that is divided among ranks, and the collectives that a step over a part of a model is made of."""

from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import pad

from gemline_kernels.shares import tokens_of


class Collectives(Protocol):
    """As one of several ranks sees them, each with tensors where it computes. All make the same calls in one order."""

    @property
    def rank(self) -> int:
        """From 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum_(self, x: torch.Tensor) -> None:
        """Makes `x` the sum of all ranks' ones, in place: the same bits on each."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' ones, of one shape and dtype, stacked by rank."""


class Vocabulary(NamedTuple):
    """What a rank has of it, and who has the rest."""

    size: int
    ranks: Collectives

    @property
    def tokens(self) -> range:
        """Its own."""
        return tokens_of(self.ranks.rank, self.ranks.size, self.size)

    @property
    def sizes(self) -> list[int]:
        """Of all ranks' shares."""
        return [len(tokens_of(rank, self.ranks.size, self.size)) for rank in range(self.ranks.size)]

    def whole(self, part_RV: torch.Tensor) -> torch.Tensor:
        """Rows put together from all ranks' parts."""
        sizes = self.sizes
        padded_RV = pad(part_RV, (0, max(sizes) - part_RV.shape[-1]))
        return torch.cat([it[:, :size] for it, size in zip(self.ranks.gather(padded_RV), sizes, strict=True)], dim=-1)
