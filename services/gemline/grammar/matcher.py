"""One answer's way through its grammar; each step's mask is computed beside the model's step. Knows no engine."""

import concurrent.futures
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemline.errors import InvalidRequest
from gemline.grammar.compiling import reason_of

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarMatcher:
    """Fits `engine.constraint.Matcher`. What a token leads to is worked out in `pool` while the model computes.

    Whoever asks for the mask waits for it at most `step_s` seconds, and not at all for a thread to be free. After
    that the answer has failed, and its thread ends by itself when llguidance's own limits end it.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        param: str,
        pool: concurrent.futures.Executor,
        step_s: float,
        given: Sequence[int] = (),
    ) -> None:
        """`given` tokens of the answer were generated before. Works out the first mask: not for the engine's thread.

        Raises InvalidRequest when there is no way on.
        """
        self.param = param
        self.failure: str | None = None
        self._matcher = matcher
        self._pool = pool
        self._step_s = step_s
        self._num_tokens = len(given)
        if given and not matcher.consume_tokens(list(given)):
            raise InvalidRequest(f"{param}: the {len(given)} tokens generated already do not follow it", param=param)
        self._mask = self._next()
        if self.failure is not None:
            raise InvalidRequest(self.failure, param=param)
        self._next_mask: concurrent.futures.Future[bytes] | None = None

    def mask(self) -> bytes | None:
        """As the protocol says."""
        if self._next_mask is not None:
            self._mask, self._next_mask = self._wait(self._next_mask), None
        return None if self.failure is not None else self._mask

    def advance(self, token_id: int) -> None:
        """As the protocol says."""
        self.mask()
        self._num_tokens += 1
        self._token_id = token_id
        try:
            self._next_mask = self._pool.submit(self._follow, token_id)
        except RuntimeError:  # the pool has ended, and with it the worker
            self.failure = f"{self.param}: the worker is shutting down"

    def _wait(self, future: "concurrent.futures.Future[bytes]") -> bytes:
        """Where no thread was free to begin, it is done here: one whose grammar is slow holds up nobody else's."""
        if future.cancel():
            return self._follow(self._token_id)
        start_s = time.monotonic()
        try:
            return future.result(self._step_s)
        except concurrent.futures.TimeoutError:
            took_s = time.monotonic() - start_s
            self.failure = (
                f"{self.param}: what may follow token {self._num_tokens} of the answer took over {took_s:.1f} s to"
                f" work out; the limit is {self._step_s:g} s"
            )
            return b""

    def _follow(self, token_id: int) -> bytes:
        self._matcher.consume_token(token_id)
        return self._next()

    def _next(self) -> bytes:
        """The mask as things stand; notes a failure."""
        matcher = self._matcher
        mask: bytes = matcher.compute_bitmask()
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            reason = reason_of(matcher.get_error()) or "no text can follow it"
            self.failure = f"{self.param}: {reason} (after {self._num_tokens} tokens of the answer)"
        return mask
