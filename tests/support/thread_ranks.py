"""Ranks that are threads of one process: what they say to each other goes through a list and a barrier."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_LIMIT_S = 60.0


@dataclass
class _Table:
    barrier: threading.Barrier
    places: list[Any] = field(default_factory=list)


class ThreadRanks:
    """One of them; see `gemline.engine.ranks.Ranks`."""

    def __init__(self, rank: int, table: _Table) -> None:
        self.rank = rank
        self.size = len(table.places)
        self.num_numbers = 0  # that it sent to each other one
        self._table = table

    def sum_(self, x: torch.Tensor) -> None:
        self.num_numbers += x.numel()
        total = torch.stack(self._exchange(x.clone())).sum(dim=0)
        x.copy_(total)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        self.num_numbers += x.numel()
        found: list[torch.Tensor] = self._exchange(x.clone())
        assert len({(it.shape, it.dtype) for it in found}) == 1, "ranks may gather what is alike only"
        return torch.stack(found)

    def collect(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = list(self.gather(x))
        return [] if self.rank else found

    def deal(self, shares: list[torch.Tensor] | None, x: torch.Tensor) -> None:
        assert (shares is None) == bool(self.rank)
        mine = self._exchange(shares)[0][self.rank]
        assert (mine.shape, mine.dtype) == (x.shape, x.dtype)
        x.copy_(mine)

    def tell(self, what: Any) -> None:
        assert self.rank == 0
        self._exchange(what)

    def hear(self) -> Any:
        assert self.rank
        return self._exchange(None)[0]

    def _exchange(self, what: Any) -> list[Any]:
        self._table.places[self.rank] = what
        self._table.barrier.wait(_LIMIT_S)
        found = list(self._table.places)
        self._table.barrier.wait(_LIMIT_S)
        return found


def together(num_ranks: int, run: Callable[[ThreadRanks], T]) -> list[T]:
    """What each rank's run gives."""
    table = _Table(threading.Barrier(num_ranks), [None] * num_ranks)

    def one(rank: int) -> T:
        try:
            return run(ThreadRanks(rank, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as pool:
        waiting = [pool.submit(one, rank) for rank in range(num_ranks)]
    errors = [error for error in (it.exception() for it in waiting) if error is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [it.result() for it in waiting]
