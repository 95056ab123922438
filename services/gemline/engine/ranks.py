"""The ranks of a tensor-parallel group, and what they say to each other. Knows no model.

All ranks make the same calls in the same order; one that fails takes the group with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist

from gemline_kernels.vocabulary import Collectives


class RanksBroken(Exception):
    """A rank is gone or did something else: nothing more can be computed together."""


class Ranks(Collectives, Protocol):
    """As one of them sees the group. Every method raises RanksBroken."""

    def collect(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The same for rank 0 alone; the others get nothing."""

    def deal(self, shares: list[torch.Tensor] | None, x: torch.Tensor) -> None:
        """Fills each rank's `x` with its share; rank 0 alone has them, of `x`'s shape and dtype."""

    def tell(self, what: Any) -> None:
        """Rank 0 tells the others."""

    def hear(self) -> Any:
        """What rank 0 tells."""


class Leader:
    """Rank 0's voice. What fails while all are at it leaves the others out of step, and nothing is told any more."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._broken = ""

    @contextmanager
    def together(self, what: Any) -> Iterator[None]:
        """Tells the others what all do now. Raises RanksBroken, also when rank 0 alone fails at it, and ever after."""
        if self._broken:
            raise RanksBroken(self._broken)
        try:
            self.ranks.tell(what)
            yield
        except BaseException as error:
            self._broken = str(error) if isinstance(error, RanksBroken) else f"rank 0 failed: {error}"
            raise RanksBroken(self._broken) from error


class TorchRanks:
    """Over a torch.distributed group: NCCL where the tensors are on GPUs, gloo where they are not.

    What goes over NCCL is queued as a kernel is, and may be captured in a CUDA graph, on all ranks or none.
    """

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

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """As `Ranks` says."""
        all_PX = x.new_empty((self.size, *x.shape))
        try:
            dist.all_gather(list(all_PX.unbind()), x.contiguous(), group=self._group)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error
        return all_PX

    def collect(self, x: torch.Tensor) -> list[torch.Tensor]:
        """As `Ranks` says."""
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        try:
            dist.gather(x, parts or None, dst=0, group=self._group)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error
        return parts

    def deal(self, shares: list[torch.Tensor] | None, x: torch.Tensor) -> None:
        """As `Ranks` says."""
        try:
            dist.scatter(x, shares, src=0, group=self._group)
        except RuntimeError as error:
            raise RanksBroken(f"rank {self.rank} of {self.size}: {error}") from error

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
