"""Sends conversations: as a closed loop of so many at a time, or arriving as a Poisson process. Knows no prompt."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gemline.bench.measure import Record
from gemline.bench.openai_stream import Answered, Said
from gemline.bench.workloads import Ask, Conversation
from gemline.errors import ConfigurationError

_SKIPPED = "not sent: an earlier turn of its session failed"


class Asked(Protocol):
    """Who is asked; never raises for one request's sake."""

    async def ask(self, said: Sequence[Said], ask: Ask) -> Answered:
        """The record of one request and its answer."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How conversations start: `rate` a second at random, or as soon as fewer than `concurrency` are under way.

    With both, an arrival waits while so many are under way.
    """

    concurrency: int | None = None
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigurationError(f"--concurrency is {self.concurrency}: it must be at least 1")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ConfigurationError(f"--rate is {self.rate}: it must be a number of requests a second, over 0")

    def starts_s(self, num: int) -> list[float]:
        """When each conversation comes, in seconds after the first."""
        if self.rate is None:
            return [0.0] * num
        rng = random.Random(self.seed)
        starts, now = [], 0.0
        for _ in range(num):
            starts.append(now)
            now += rng.expovariate(self.rate)
        return starts


class Run(NamedTuple):
    """What came of it: a record for each turn, in the order of the conversations, and how long it took."""

    records: list[Record]
    duration_s: float


async def run(server: Asked, conversations: Sequence[Conversation], pace: Pace) -> Run:
    """Send them all; turns of one conversation follow each other, each with the answers before it."""
    free = asyncio.Semaphore(pace.concurrency or max(1, len(conversations)))
    begun_s = time.perf_counter()

    async def hold(conversation: Conversation, start_s: float) -> list[Record]:
        await asyncio.sleep(max(0.0, begun_s + start_s - time.perf_counter()))
        async with free:
            return await _hold(server, conversation)

    starts_s = pace.starts_s(len(conversations))
    held = await asyncio.gather(*map(hold, conversations, starts_s))
    duration_s = time.perf_counter() - begun_s
    return Run([record for records in held for record in records], duration_s)


async def _hold(server: Asked, conversation: Conversation) -> list[Record]:
    said: list[Said] = []
    records: list[Record] = []
    for ask in conversation:
        answered = await server.ask(said, ask)
        records.append(answered.record)
        if answered.record.error is not None:
            break
        said.append(Said(ask, answered.text))
    skipped = Record(time.perf_counter(), error=_SKIPPED)
    return records + [skipped] * (len(conversation) - len(records))
