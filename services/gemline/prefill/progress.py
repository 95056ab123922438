"""How far each prefill of this worker has come: written by engine steps, awaited by the streams. Event loop only."""

import asyncio
from typing import NamedTuple

from gemline.engine.events import FailureEvent, StepResult, TokenEvent


class Reached(NamedTuple):
    """Keys and values of [0, num_computed) are in the cache; `first` is the first token, once it is known."""

    num_computed: int
    first: TokenEvent | None


class Progress:
    """One prefill. Its stream may be slower than the engine: only the latest state is kept."""

    def __init__(self) -> None:
        self._reached = Reached(0, None)
        self._failure: FailureEvent | None = None
        self._changed = asyncio.Event()
        self.computed_s = 0.0  # when the last chunk so far was, by the monotonic clock

    async def next(self) -> Reached | FailureEvent:
        """The state, as soon as it is another than at the last call."""
        await self._changed.wait()
        self._changed.clear()
        return self._failure or self._reached

    def advance(self, num_computed: int, at_s: float) -> None:
        """A chunk is done. After a preemption the count begins again from 0, and nothing is taken back."""
        self.computed_s = at_s
        self._set(Reached(max(num_computed, self._reached.num_computed), self._reached.first))

    def finish(self, first: TokenEvent) -> None:
        """The first token is known."""
        self._set(Reached(self._reached.num_computed, first))

    def fail(self, failure: FailureEvent) -> None:
        """The engine gave the sequence up."""
        self._failure = failure
        self._changed.set()

    def _set(self, reached: Reached) -> None:
        self._reached = reached
        self._changed.set()


class ProgressTable:
    """All prefills of the worker, by seq_id."""

    def __init__(self) -> None:
        self._live: dict[int, Progress] = {}
        self._num_running = 0
        self.idle = asyncio.Event()  # set while there is none
        self.idle.set()

    @property
    def load(self) -> tuple[int, int]:
        """Prefills (running, waiting); one that is done but not yet fetched runs."""
        num_running = min(self._num_running, len(self._live))
        return num_running, len(self._live) - num_running

    def begin(self, seq_id: int) -> Progress:
        """A prefill starts."""
        self.idle.clear()
        progress = self._live[seq_id] = Progress()
        return progress

    def end(self, seq_id: int) -> None:
        """Its stream is over."""
        del self._live[seq_id]
        if not self._live:
            self.idle.set()

    def deliver(self, result: StepResult) -> None:
        """What a step gave; events of a stream that is over are dropped."""
        self._num_running = result.num_running
        for prefill in result.prefills:
            if (progress := self._live.get(prefill.seq_id)) is not None:
                progress.advance(prefill.num_computed, result.ended_s)
        for token in result.tokens:
            if (progress := self._live.get(token.seq_id)) is not None:
                progress.finish(token)
        for failure in result.failures:
            if (progress := self._live.get(failure.seq_id)) is not None:
                progress.fail(failure)
