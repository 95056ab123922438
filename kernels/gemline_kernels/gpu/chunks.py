"""How rows of logits are cut into chunks, on one device or among ranks, and what the ranks say of theirs."""

from dataclasses import dataclass

import torch
import triton

from gemline_kernels.vocabulary import Collectives, Vocabulary


@dataclass(frozen=True, slots=True)
class Chunks:
    """Of C chunks this device has `num_own` from `first` on; ranks have equally many, in the order of their tokens."""

    num: int
    first: int
    num_own: int
    first_token: int  # of its own
    ranks: Collectives | None  # None: there is one device

    @classmethod
    def of(cls, num_tokens: int, size: int, vocabulary: Vocabulary | None) -> "Chunks":
        """Of `size` tokens each, where a device has `num_tokens`; the last ones of a rank may lack some, or all."""
        if vocabulary is None:
            num = triton.cdiv(num_tokens, size)
            return cls(num, 0, num, 0, None)
        num_own, ranks = triton.cdiv(max(vocabulary.sizes), size), vocabulary.ranks
        return cls(num_own * ranks.size, num_own * ranks.rank, num_own, vocabulary.tokens.start, ranks)

    def all_of(self, own_XBC: torch.Tensor) -> torch.Tensor:
        """all_XBC, X numbers of the chunks of all devices."""
        if self.ranks is None:
            return own_XBC
        return self.ranks.gather(own_XBC).permute(1, 2, 0, 3).flatten(2).contiguous()

    def sum_(self, x: torch.Tensor) -> None:
        """Makes `x` the sum of all devices' ones, in place."""
        if self.ranks is not None:
            self.ranks.sum_(x)
