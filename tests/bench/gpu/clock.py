"""How long calls take: on a GPU replayed from a CUDA graph between events, elsewhere once by the host's clock."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], object]
_MOST_REPLAYS = 200  # each is a step of sequences that have blocks for no more


def nothing() -> None:
    """What has to happen before most calls."""


class Clock(Protocol):
    def seconds(self, calls: Sequence[Call]) -> float:
        """Median time of a call. They take turns: each has data of its own, none finds it in a cache."""

    def replay_seconds(self, replay: Call, before: Call = nothing) -> float:
        """Median time of a call that queues a whole piece of work; `before` is not timed."""


@dataclass(frozen=True)
class GpuClock:
    """As many replays as fit into `budget_s`, five at least."""

    budget_s: float = 0.1

    def seconds(self, calls: Sequence[Call]) -> float:
        """As `Clock` says."""
        return self.replay_seconds(captured(calls).replay) / len(calls)

    def replay_seconds(self, replay: Call, before: Call = nothing) -> float:
        """As `Clock` says."""
        warm = _timed(replay, before, 3)[-1]
        number = min(_MOST_REPLAYS, max(5, int(self.budget_s / max(warm, 1e-6))))
        return statistics.median(_timed(replay, before, number))


@dataclass(frozen=True)
class HostClock:
    """Each call once: to see that it can be made."""

    def seconds(self, calls: Sequence[Call]) -> float:
        """As `Clock` says."""
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    def replay_seconds(self, replay: Call, before: Call = nothing) -> float:
        """As `Clock` says."""
        before()
        return self.seconds([replay])


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A graph of the calls, one after the other, each made once before: what is compiled cannot be captured."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _timed(replay: Call, before: Call, number: int) -> list[float]:
    """Seconds of each replay; all are queued before the first is looked at."""
    event: Any = torch.cuda.Event
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(number)]
    for start, stop in pairs:
        before()
        start.record()
        replay()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]
