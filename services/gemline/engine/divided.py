"""Operations of a model that is divided among ranks, as a backend's own are: what they read and give is whole."""

from dataclasses import dataclass

import torch

from gemline.engine.ranks import Ranks
from gemline_kernels.backend import Embedding, Linear


@dataclass(frozen=True, slots=True)
class Summed:
    """A row-parallel linear: each rank has some inputs; the result is the sum."""

    own: Linear
    ranks: Ranks

    @property
    def num_bytes(self) -> int:
        """Of this rank."""
        return self.own.num_bytes

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        """y_TN, whole on every rank."""
        y_TN = self.own(x_TD)
        self.ranks.sum_(y_TN)
        return y_TN


@dataclass(frozen=True, slots=True)
class SharedVocabulary:
    """An embedding whose tokens are divided. `logits` are of this rank's tokens alone."""

    own: Embedding
    tokens: range
    ranks: Ranks

    @property
    def num_bytes(self) -> int:
        """Of this rank."""
        return self.own.num_bytes

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        """x_TD, whole on every rank."""
        is_own_T = (token_ids_T >= self.tokens.start) & (token_ids_T < self.tokens.stop)
        x_TD = self.own.rows(torch.where(is_own_T, token_ids_T - self.tokens.start, 0), scale)
        x_TD = torch.where(is_own_T[:, None], x_TD, 0)
        self.ranks.sum_(x_TD)
        return x_TD

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        """logits_BV of this rank's tokens."""
        return self.own.logits(x_BD, cap)
