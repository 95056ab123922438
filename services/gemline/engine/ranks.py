"""The ranks of a tensor-parallel group, and what they say to each other. Knows no model.

All ranks make the same calls in the same order; one that fails takes the group with it.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist


class RanksBroken(Exception):
    """A rank is gone or did something else: nothing more can be computed together."""


class Ranks(Protocol):
    """As one of them sees the group. Every method raises RanksBroken."""

    @property
    def rank(self) -> int:
        """From 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum_(self, x: torch.Tensor) -> None:
        """Makes `x` the sum of all ranks' ones, in place."""

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """All ranks' ones, of one shape and dtype, by rank."""

    def tell(self, what: Any) -> None:
        """Rank 0 tells the others."""

    def hear(self) -> Any:
        """What rank 0 tells."""


class TorchRanks:
    """Over a torch.distributed group: NCCL where the tensors are on GPUs, gloo where they are not."""

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | None = None) -> None:
        """None: the default group, which is there already."""
        self._group = group
        self._device = device or torch.device("cpu")

    @property
    def rank(self) -> int:
        """From 0."""
        return dist.get_rank(self._group)

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self._group)

    def sum_(self, x: torch.Tensor) -> None:
        """As `Ranks` says."""
        try:
            dist.all_reduce(x, group=self._group)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """As `Ranks` says."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        try:
            dist.all_gather(parts, x.contiguous(), group=self._group)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error
        return parts

    def tell(self, what: Any) -> None:
        """As `Ranks` says."""
        self._broadcast([what])

    def hear(self) -> Any:
        """As `Ranks` says."""
        return self._broadcast([None])[0]

    def _broadcast(self, what: list[Any]) -> list[Any]:
        try:
            dist.broadcast_object_list(what, src=0, group=self._group, device=self._device)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error
        return what
