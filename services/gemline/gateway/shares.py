"""Whose turn it is: the virtual token counter (Sheng et al., arXiv 2401.00588). Pure; knows no request and no clock.

Each tenant has a counter of the service it got, divided by its weight: an input token counts 1, an output token 2.
Whoever waits with the least counter is next. A tenant that comes back from having nothing to do is lifted to the least
of those that wait, so that nobody saves up a claim; those who wait get service that differs by a bounded amount,
however much they ask for.
"""

from collections.abc import Iterable

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
_MAX_KNOWN = 10_000  # tenants whose counters are kept; those that lag behind go first, as they would be lifted anyhow

_ROUNDS_KNOWN = 240  # two minutes, at two rounds a second


class Shares:
    """Of the tenants of one gateway."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._fresh: dict[str, float] = {}  # served since `take_fresh`
        self._idle_rounds: dict[str, int] = {}  # of `take_fresh`, since the tenant was last heard of
        self._floor = 0.0  # the counter of whoever was served last

    def enter(self, tenant: str, waiting: Iterable[str]) -> None:
        """The tenant had nothing waiting and has now; `waiting` are the others that have."""
        self._idle_rounds[tenant] = 0
        least = min((self._served[other] for other in waiting), default=self._floor)
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        if len(self._served) > _MAX_KNOWN:
            keep = sorted(self._served, key=self._served.__getitem__)[_MAX_KNOWN // 10 :]
            self._served = {tenant: self._served[tenant] for tenant in (*keep, *waiting, tenant)}

    def next(self, waiting: Iterable[str]) -> str:
        """Whose turn it is, of at least one tenant that has entered."""
        return min(waiting, key=lambda tenant: (self._served[tenant], tenant))

    def read(self, tenant: str, num_tokens: int, weight: float) -> None:
        """Input tokens, counted when a request begins."""
        self._floor = self._served.get(tenant, self._floor)
        self._charge(tenant, INPUT_WEIGHT * num_tokens / weight)

    def wrote(self, tenant: str, num_tokens: int, weight: float) -> None:
        """Output tokens, counted as they come; below 0 to take back what was counted and not used."""
        self._charge(tenant, OUTPUT_WEIGHT * num_tokens / weight)

    def take_fresh(self) -> dict[str, float]:
        """What each tenant was served here since this was asked last."""
        self._idle_rounds = {it: num + 1 for it, num in self._idle_rounds.items() if num < _ROUNDS_KNOWN}
        fresh, self._fresh = self._fresh, {}
        return fresh

    def known(self) -> list[str]:
        """Tenants that were heard of lately."""
        return list(self._idle_rounds)

    def add_foreign(self, served: dict[str, float]) -> None:
        """What tenants were served by other gateways meanwhile."""
        for tenant, amount in served.items():
            if tenant in self._served:
                self._served[tenant] += amount

    def _charge(self, tenant: str, amount: float) -> None:
        if tenant in self._served:
            self._served[tenant] += amount
            self._idle_rounds[tenant] = 0
            self._fresh[tenant] = self._fresh.get(tenant, 0.0) + amount
