"""A worker's constraints: compiled in threads of their own, kept for those who ask again. Knows no request."""

import asyncio
import concurrent.futures
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gemline.cores import num_cores
from gemline.engine.constraint import Constraint
from gemline.errors import InvalidRequest, Overloaded
from gemline.grammar.compiling import compile_constraint
from gemline.grammar.limits import GrammarLimits
from gemline.grammar.matcher import GrammarMatcher
from gemline.grammar.vocabulary import vocabulary
from gemline.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NUM_COMPILERS = 2
_NUM_MASKERS = max(2, min(8, num_cores() // 2))


class Grammars:
    """For one model. Whoever asks first also waits for the vocabulary, which takes seconds for 256000 tokens."""

    def __init__(
        self,
        load: Callable[[], Tokenizer],
        vocab_size: int,
        end_ids: Sequence[int],
        limits: GrammarLimits | None = None,
    ) -> None:
        """`load` gives the model's tokenizer; `vocab_size` is the width of its logits; `end_ids` may end an answer."""
        self._load = load
        self._vocab_size = vocab_size
        self._end_ids = tuple(end_ids)
        self._limits = limits or GrammarLimits()
        self._compilers = concurrent.futures.ThreadPoolExecutor(_NUM_COMPILERS, "grammar")
        self._maskers = concurrent.futures.ThreadPoolExecutor(_NUM_MASKERS, "mask")
        self._making = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()  # the last used last
        self._num_queued = 0

    def close(self) -> None:
        """No more is compiled."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._maskers.shutdown(wait=False, cancel_futures=True)

    async def matcher(self, constraint: Constraint, given: Sequence[int] = ()) -> GrammarMatcher:
        """For one answer, of which the `given` tokens are there already.

        Raises InvalidRequest naming the field when the constraint cannot be read or takes too long, Overloaded when
        too many wait to be compiled.
        """
        limits = self._limits
        if self._num_queued >= limits.max_queued:
            raise Overloaded(f"{self._num_queued} constraints wait to be compiled, as many as may; try again later")
        job = _Job()
        self._num_queued += 1
        try:
            future = self._compilers.submit(self._make, job, constraint, given)
            return await job.result(future, constraint.param, limits)
        except RuntimeError as error:  # the pool has ended
            raise Overloaded("the worker is shutting down; try again") from error
        finally:
            self._num_queued -= 1

    def _make(self, job: "_Job", constraint: Constraint, given: Sequence[int]) -> GrammarMatcher:
        made = self._prepared()
        if made is None:
            message = f"{constraint.param}: constrained answers are not served here: llguidance is not installed"
            raise InvalidRequest(message, param=constraint.param)
        job.began_s = time.monotonic()
        prototype = self._compiled.get(constraint)
        if prototype is None:
            prototype = compile_constraint(constraint, made, self._limits)
            self._keep(constraint, prototype)
        return GrammarMatcher(prototype.deep_copy(), constraint.param, self._maskers, self._limits.step_s, given)

    def _keep(self, constraint: Constraint, prototype: "LLMatcher") -> None:
        with self._making:
            self._compiled[constraint] = prototype
            while len(self._compiled) > self._limits.num_cached:
                self._compiled.popitem(last=False)

    def _prepared(self) -> "LLTokenizer | None":
        with self._making:
            if self._vocabulary is None:
                try:
                    self._vocabulary = vocabulary(self._load(), self._vocab_size, self._end_ids)
                except ImportError:
                    return None
            return self._vocabulary


class _Job:
    """One compilation, on its way through the queue."""

    def __init__(self) -> None:
        self.began_s: float | None = None  # by the monotonic clock

    async def result(
        self, future: "concurrent.futures.Future[GrammarMatcher]", param: str, limits: GrammarLimits
    ) -> GrammarMatcher:
        """Waits no longer than the limits say; the thread is not waited for after that."""
        waiting = asyncio.wrap_future(future)
        queued_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            began_s = self.began_s
            ends_s = queued_s + limits.queue_s if began_s is None else began_s + limits.compile_s
            if waiting.done():
                return waiting.result()
            if now_s >= ends_s:
                break
            await asyncio.wait([waiting], timeout=min(ends_s - now_s, limits.compile_s))
        waiting.cancel()
        if began_s is None:
            raise Overloaded(f"no thread was free for {limits.queue_s:g} s to compile {param}; try again later")
        message = f"{param}: compiling took over {now_s - began_s:.1f} s; the limit is {limits.compile_s:g} s"
        raise InvalidRequest(message, param=param)
