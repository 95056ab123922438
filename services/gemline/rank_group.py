"""A tensor-parallel group as rank 0 starts, joins and watches it. Who starts the others, and where, it does not know.

When one of them ends, whoever asked is told, so that the whole group goes: what is left of a divided model computes
nothing.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from gemline import garbage
from gemline.cores import num_cores
from gemline.engine.engine import Engine
from gemline.engine.group import follow
from gemline.engine.options import EngineOptions
from gemline.engine.ranks import RanksBroken, TorchRanks
from gemline.errors import ConfigurationError
from gemline.rank_meeting import Meeting

_START_LIMIT_S = 300.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RankTask:
    """All that a rank other than 0 has to know."""

    rank: int
    meeting: str  # URL of the place; see `Meeting`
    model_dir: Path
    options: EngineOptions


class StartedRank(Protocol):
    """A rank other than 0, as rank 0 has it."""

    def last_words(self) -> str | None:
        """Why it ended; None while it runs."""

    def wait(self) -> None:
        """Until it has ended, however long that is."""

    def kill(self) -> None:
        """At once. It may have ended before."""


class Starter(Protocol):
    """Who starts ranks. What it starts must end when this process ends, even if it is killed."""

    @property
    def address(self) -> str | None:
        """Of this node, where ranks on others reach it; None: all are on this machine."""

    def check(self, num_ranks: int) -> None:
        """Raises ConfigurationError, with both numbers, when it cannot place so many."""

    def start(self, task: RankTask) -> StartedRank:
        """Begins the rank; does not wait until it is there."""


class RankGroup:
    """Ranks 1 and on, as rank 0 has them."""

    def __init__(
        self, model_dir: Path, options: EngineOptions, starter: Starter, on_death: Callable[[str], None]
    ) -> None:
        """`on_death` hears, in a thread of its own, why a rank ended, whatever rank 0 does or waits for by then."""
        self._num_ranks = options.tensor_parallel
        self._directory = tempfile.TemporaryDirectory(prefix="gemline-ranks-")
        self._meeting = _open(Path(self._directory.name), starter.address, self._num_ranks)
        self._on_death = on_death
        self._is_over = False
        self._others = {
            rank: starter.start(RankTask(rank, self._meeting.url, model_dir, options))
            for rank in range(1, self._num_ranks)
        }
        for rank in self._others:
            threading.Thread(target=self._watch, args=(rank,), name=f"rank {rank}", daemon=True).start()

    def join(self) -> TorchRanks:
        """Once all are there. Raises ConfigurationError with a rank's last words when one ends before."""
        limit_s = time.monotonic() + _START_LIMIT_S
        while not self._meeting.are_there(self._others):
            if words := self.last_words():
                raise ConfigurationError(words)
            if time.monotonic() > limit_s:
                raise ConfigurationError(f"the ranks were not all there within {_START_LIMIT_S:g} s")
            time.sleep(_POLL_S)
        return self._meeting.join(0, self._num_ranks)

    def last_words(self) -> str:
        """Of the first rank that ended, if any has."""
        for rank, other in self._others.items():
            if (words := other.last_words()) is not None:
                return f"rank {rank} ended: {words}"
        return ""

    def stop(self) -> None:
        """What is left of them."""
        self._is_over = True
        for other in self._others.values():
            other.kill()
        self._directory.cleanup()

    def _watch(self, rank: int) -> None:
        self._others[rank].wait()
        if not self._is_over:
            self._on_death(f"rank {rank} ended: {self._others[rank].last_words()}")


def _open(directory: Path, address: str | None, num_ranks: int) -> Meeting:
    """No port has to be open for ranks of one machine to meet."""
    if address is None:
        return Meeting.in_file(directory / "meeting", num_ranks)
    return Meeting.at_port(address, num_ranks)


def load_engine(model_dir: Path, options: EngineOptions, starter: Starter, on_loss: Callable[[str], None]) -> Engine:
    """The engine of a checkpoint, whole or as rank 0 of a group. Raises as `Engine.load`.

    `on_loss` hears when the group is broken. To be called in the thread that will run the engine.
    """
    if options.tensor_parallel == 1:
        return Engine.load(model_dir, options)
    starter.check(options.tensor_parallel)
    group = RankGroup(model_dir, options, starter, on_loss)
    try:
        engine = Engine.load(model_dir, shared_out(options), group.join())
    except BaseException as error:
        words = group.last_words()
        group.stop()
        if isinstance(error, RanksBroken):
            raise ConfigurationError(words or str(error)) from error
        raise
    return engine


def run_rank(task: RankTask) -> None:
    """A rank other than 0, in a process of its own, until rank 0 says that it is over. Raises as `follow`."""
    options = shared_out(task.options)
    torch.set_num_threads(options.num_threads or 1)
    meeting = Meeting.at(task.meeting, options.tensor_parallel)
    meeting.arrive(task.rank)
    ranks = meeting.join(task.rank, options.tensor_parallel)
    garbage.started()
    follow(task.model_dir, options, ranks)


def shared_out(options: EngineOptions) -> EngineOptions:
    """With the cores for one rank of those that share this machine."""
    number = options.num_threads or num_cores()
    return replace(options, num_threads=max(1, number // options.tensor_parallel))
