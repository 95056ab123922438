"""Runs an engine in a thread of its own, passes calls in and steps out. Knows no network."""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

import torch

from gemline.cores import num_cores
from gemline.engine.engine import Engine
from gemline.engine.events import FailureEvent, StepResult
from gemline.engine.ranks import RanksBroken
from gemline.engine.requests import EngineRequest
from gemline.errors import ConfigurationError, GemlineError, InternalError, Unavailable

T = TypeVar("T")
_LOST_TIMEOUT_S = 1.0  # for a thread that may never end
_UNLESS_TOLD = suppress(concurrent.futures.InvalidStateError)  # of two ends of loading the first counts
_log = logging.getLogger(__name__)


class _Command(NamedTuple):
    """Something to do between two steps; `drop` is called instead when the engine has stopped before."""

    run: Callable[[Engine], None]
    drop: Callable[[], None]


class EngineThread:
    """Owns the thread in which the engine is loaded, stepped and called; the other methods are for other threads.

    `on_step` is called in the engine's thread after each step, and after each request that the engine refused.
    `num_threads` is how many torch computes in, loading included; None: one for each core this process may use.
    The thread sleeps while there is nothing to do.
    """

    def __init__(
        self, load: Callable[[], Engine], on_step: Callable[[StepResult], None], num_threads: int | None = None
    ) -> None:
        self._load = load
        self._on_step = on_step
        self._num_threads = num_threads
        self._loaded: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._refused: list[FailureEvent] = []
        self._closing = threading.Lock()
        self._closed = False
        self._stopping = False
        self._lost = ""  # why nothing can be computed any more
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to load; `ready` tells when that is done, or what was wrong."""
        self._thread.start()

    async def ready(self) -> Engine:
        """Waits until the engine is loaded. Raises what loading raised.

        The engine is for its constants (config, options, revision); everything else goes through `call`.
        """
        return await asyncio.wrap_future(self._loaded)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there: it is loading, or would still answer.

        Once it is lost it is not, even where it stands in a step for good: a GPU waits for a rank that is gone.
        """
        return self._thread.is_alive() and not self._lost

    @property
    def last_step_age_s(self) -> float:
        """For how long the step or call that is going on has been going on; 0 while there is nothing to do."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def submit(self, request: EngineRequest) -> None:
        """Adds a sequence; a refusal comes back as a FailureEvent. Raises Unavailable when the engine has stopped."""
        self._put(_Command(lambda engine: self._add(engine, request), _ignore))

    def cancel(self, seq_id: int) -> None:
        """Forgets a sequence before the next step; fine when it, or the engine, has ended."""
        with suppress(Unavailable):
            self._put(_Command(lambda engine: engine.cancel(seq_id), _ignore))

    def call(self, function: Callable[[Engine], T]) -> concurrent.futures.Future[T]:
        """Runs the function in the engine's thread, between two steps. The future fails if the engine stops before."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run(engine: Engine) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(engine))
            except BaseException as error:
                future.set_exception(error)

        def drop() -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(_stopped())

        try:
            self._put(_Command(run, drop))
        except Unavailable:
            drop()
        return future

    def lose(self, reason: str) -> None:
        """What the engine computes with is gone: its sequences are told, and the thread ends.

        Whoever waits until it is loaded hears it as a ConfigurationError: the thread may stand there for good.
        """
        self._lost = reason
        with _UNLESS_TOLD:
            self._loaded.set_exception(ConfigurationError(reason))
        with suppress(Unavailable):
            self._put(_Command(_ignore_engine, _ignore))

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Ends the thread after the step that is going on; whether it ended in time. Sequences are forgotten."""
        self._stopping = True
        with suppress(Unavailable):
            self._put(_Command(_ignore_engine, _ignore))
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join(min(timeout_s, _LOST_TIMEOUT_S) if self._lost else timeout_s)
        return not self._thread.is_alive()

    def _put(self, command: _Command) -> None:
        with self._closing:
            if self._closed:
                raise _stopped()
            self._commands.put(command)

    def _main(self) -> None:
        try:
            engine = self._load_engine()
            if engine is not None:
                self._serve(engine)
                with suppress(RanksBroken):
                    engine.end()
        finally:
            self._close()

    def _load_engine(self) -> Engine | None:
        self._loaded.set_running_or_notify_cancel()
        try:
            # The count belongs to the calling thread; one that was never set takes every core of the machine.
            torch.set_num_threads(self._num_threads or num_cores())
            engine = self._load()
        except BaseException as error:
            with _UNLESS_TOLD:
                self._loaded.set_exception(error)
            return None
        with _UNLESS_TOLD:
            self._loaded.set_result(engine)
        return engine

    def _serve(self, engine: Engine) -> None:
        idle = True
        while not self._stopping:
            self._run_commands(engine, wait=idle)
            self._busy_since_s = time.monotonic()
            result = self._step(engine)
            # A step that moved nothing waits for blocks that only a cancel or an import can free.
            idle = result is None or not (result.num_batch_tokens or result.num_preempted or result.failures)
            if result is not None:
                self._tell(result)

    def _run_commands(self, engine: Engine, wait: bool) -> None:
        """All that are there; when `wait`, sleeps until there is one."""
        if wait:
            self._busy_since_s = None
            command = self._commands.get()
            self._busy_since_s = time.monotonic()
            command.run(engine)
        while not self._stopping:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            command.run(engine)

    def _step(self, engine: Engine) -> StepResult | None:
        refused, self._refused = tuple(self._refused), []
        try:
            if self._lost:
                raise RanksBroken(self._lost)
            result = engine.step() if engine.has_work else None
        except Exception as error:
            _log.exception("a step failed; its engine lets go of every sequence")
            # Nothing runs any more on that device, or with those ranks, in this process.
            self._stopping = isinstance(error, torch.AcceleratorError | RanksBroken)
            result = StepResult(failures=engine.fail_all(is_lost=self._stopping))
        if not refused:
            return result
        result = result or StepResult(num_running=engine.num_running, num_waiting=engine.num_waiting)
        return replace(result, failures=refused + result.failures)

    def _add(self, engine: Engine, request: EngineRequest) -> None:
        try:
            engine.add(request)
        except GemlineError as error:
            self._refused.append(FailureEvent(request.seq_id, error.code, error.message, error.param))
        except Exception:
            _log.exception("sequence %d could not be added", request.seq_id)
            self._refused.append(FailureEvent(request.seq_id, InternalError.code, "this request could not be added"))

    def _tell(self, result: StepResult) -> None:
        try:
            self._on_step(result)
        except Exception:
            _log.exception("what listens to the engine's steps failed")

    def _close(self) -> None:
        """Nothing is taken in after this, and whoever waits for an answer is told."""
        self._busy_since_s = None
        with self._closing:
            self._closed = True
        while True:
            try:
                self._commands.get_nowait().drop()
            except Empty:
                return


def _stopped() -> Unavailable:
    return Unavailable("the engine has stopped")


def _ignore() -> None:
    return


def _ignore_engine(engine: Engine) -> None:
    return
