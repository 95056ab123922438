"""A share of each limit, by this gateway alone: what stands in for Redis while it is away. Knows no Redis.

Nobody knows then what other gateways admit, so an operator says what share of its limits a tenant may have of each.
Budgets are not checked: what was spent is in Redis.
"""

import time
from collections import deque
from collections.abc import Sequence

from gemline.cluster.limits import Scope
from gemline.errors import RateLimited

_MINUTE_S = 60.0


class LocalLimits:
    """All is checked, then all is taken, as in Redis."""

    def __init__(self, share: float) -> None:
        """`share` of each limit, above 0 and at most 1."""
        self._share = share
        self._windows: dict[tuple[str, str], deque[tuple[float, int]]] = {}  # by kind and scope: when, how much
        self._running: dict[str, set[str]] = {}  # request ids by scope

    def count(self, scopes: Sequence[Scope]) -> None:
        """One request. Raises RateLimited."""
        self._take_minute(scopes, "requests", 1)

    def reserve(self, scopes: Sequence[Scope], request_id: str, tokens: int) -> None:
        """Tokens, and a place among those that run until `release`. Raises RateLimited."""
        for scope in scopes:
            most = scope.limits.concurrent_requests
            running = self._running.get(scope.name, set())
            if most is not None and len(running) + 1 > most * self._share:
                raise _refused(most, self._share, len(running), 1, "requests at once")
        self._take_minute(scopes, "tokens", tokens)
        for scope in scopes:
            self._running.setdefault(scope.name, set()).add(request_id)

    def release(self, scopes: Sequence[Scope], request_id: str) -> None:
        """It runs no longer; fine for one that never did."""
        for scope in scopes:
            if (running := self._running.get(scope.name)) is not None:
                running.discard(request_id)
                if not running:
                    del self._running[scope.name]

    def _take_minute(self, scopes: Sequence[Scope], kind: str, amount: int) -> None:
        now_s = time.monotonic()
        limited: list[deque[tuple[float, int]]] = []
        for scope in scopes:
            limit: int | None = getattr(scope.limits, f"{kind}_per_min")
            if limit is None:
                continue
            window = self._windows.setdefault((kind, scope.name), deque())
            while window and window[0][0] <= now_s - _MINUTE_S:
                window.popleft()
            used = sum(taken for _, taken in window)
            if used + amount > limit * self._share:
                raise _refused(limit, self._share, used, amount, f"{kind} a minute")
            limited.append(window)
        for window in limited:
            window.append((now_s, amount))


def _refused(limit: int, share: float, used: int, asked: int, what: str) -> RateLimited:
    message = f"limits cannot be shared among gateways now: {share:g} of {limit} {what}, {used} used, {asked} asked for"
    return RateLimited(message, retry_after_s=1.0)
