"""When a call is tried again: how often, how soon, never past its deadline. Does no waiting itself."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import grpc

from gemline.client.status import error_of, may_retry, pushback_s, was_refused
from gemline.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff. `max_attempts` counts the first try too: 1 never tries again."""

    max_attempts: int = 5
    initial_backoff_s: float = 0.2
    max_backoff_s: float = 5.0

    def backoff_s(self, num_failures: int, draw: float) -> float:
        """Seconds after that many failures; `draw` in [0, 1) spreads clients that failed together over half of it."""
        num_doublings = min(num_failures - 1, 60)  # more would overflow a float
        backoff_s = min(self.max_backoff_s, self.initial_backoff_s * 2.0**num_doublings)
        return backoff_s * (0.5 + draw / 2)


class Tries:
    """The tries of one request, all under one deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        address: str,
        timeout_s: float | None,
        *,
        changes: bool = False,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`changes`: what is asked for must not be done twice, so it is only tried again when it surely was not."""
        self._policy = policy
        self._may_retry = was_refused if changes else may_retry
        self._address = address
        self._timeout_s = timeout_s
        self._clock = clock
        self._draw = draw
        self._deadline = clock() + timeout_s if timeout_s is not None and math.isfinite(timeout_s) else None
        self._num_failures = 0

    @property
    def is_retry(self) -> bool:
        """Whether the last try was not the first."""
        return self._num_failures > 1

    def remaining_s(self) -> float | None:
        """Seconds that the next try may take, None for any; raises DeadlineExceeded when none are left."""
        if self._deadline is None:
            return None
        if (remaining_s := self._deadline - self._clock()) <= 0:
            raise DeadlineExceeded(f"no whole answer from {self._address} within {self._timeout_s:g} s")
        return remaining_s

    def pause_s(self, failure: grpc.RpcError) -> float:
        """Seconds to wait before the next try; raises the failure, typed, when there is to be none."""
        self._num_failures += 1
        pause_s = self._policy.backoff_s(self._num_failures, self._draw())
        least_s = pushback_s(failure)
        if self._num_failures >= self._policy.max_attempts or not self._may_retry(failure) or least_s is None:
            self.give_up(failure)
        pause_s = max(pause_s, least_s)
        if self._deadline is not None and self._clock() + pause_s >= self._deadline:
            self.give_up(failure)
        return pause_s

    def give_up(self, failure: grpc.RpcError) -> NoReturn:
        """Raise the failure, typed."""
        raise error_of(failure, self._address, self._timeout_s) from failure
