"""Limits in Redis: one script checks all of a request's and takes all or nothing; another settles what it really used.

Exact however many gateways ask at once. A request's tokens are reserved before it starts, prompt and max_tokens, under
a lease that its gateway renews; what a gateway that died had reserved is free again after it. A failover of Redis may
forget the last writes: then a limit can be passed by as much.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis

from gemline.cluster import limit_scripts as scripts
from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError

LEASE_S = 30.0
MAX_USAGE_RECORDS = 1_000_000  # older ones are dropped: export them before

LIMIT_NAMES = ("requests_per_min", "tokens_per_min", "concurrent_requests", "token_budget", "kv_byte_seconds")
MAX_LIMIT = 2**50  # of any one; exact in Lua's doubles, sums included


@dataclass(frozen=True, slots=True)
class Limits:
    """What one scope may; None: as much as there is. The last two are for a `period`, a day or a month of UTC."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None  # of prompts and answers
    concurrent_requests: int | None = None
    token_budget: int | None = None
    kv_byte_seconds: int | None = None
    period: Literal["day", "month"] = "month"

    def __post_init__(self) -> None:
        for name in LIMIT_NAMES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LIMIT:
                raise ConfigurationError(f"{name} must be from 0 to {MAX_LIMIT}, is {value}", param=name)
        if self.period not in ("day", "month"):
            raise ConfigurationError(f"period must be day or month, is {self.period!r}", param="period")

    @property
    def are_none(self) -> bool:
        """Whether nothing is limited."""
        return not self.given

    @property
    def given(self) -> dict[str, Any]:
        """What is limited, and the period."""
        named = {name: getattr(self, name) for name in LIMIT_NAMES}
        given = {name: value for name, value in named.items() if value is not None}
        return given and {**given, "period": self.period}


class Scope(NamedTuple):
    """A tenant, a project or a key, by a name of its own, with its limits."""

    name: str
    limits: Limits

    def as_ask(self) -> dict[str, Any]:
        """For the scripts."""
        return {"name": self.name, **self.limits.given}


class Level(NamedTuple):
    """How one limit a minute stands, where least is left of it."""

    limit: int
    remaining: int
    reset_ms: int  # until all of it is there again


class Refusal(NamedTuple):
    """Which limit a request does not fit into."""

    scope: str
    kind: str  # the name of a field of Limits, its "_per_min" left out
    limit: int
    used: int
    asked: int
    wait_ms: int  # until it might; -1: it never will


class Reserved(NamedTuple):
    """What came of asking: without a refusal it was taken."""

    at: int  # second of Redis's clock
    refusal: Refusal | None
    requests: Level | None  # None: not limited
    tokens: Level | None


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One settled request. Tokens are those that were delivered; `kv_byte_seconds` are bytes times the seconds held."""

    request_id: str
    tenant: str
    project: str
    key_id: str
    model: str
    outcome: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    kv_byte_seconds: int = 0
    at_ms: int = 0  # when it was settled, of Redis's clock; 0: not yet

    @property
    def settled(self) -> dict[str, str | int]:
        """All but the time, which Redis adds."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "at_ms"}


class LimitStore:
    """Every method raises Unavailable when Redis does not answer in time."""

    def __init__(self, redis: Redis, lease_s: float = LEASE_S) -> None:
        self._redis = redis
        self.lease_s = lease_s
        self._reserve = redis.register_script(scripts.RESERVE)
        self._settle = redis.register_script(scripts.SETTLE)
        self._renew = redis.register_script(scripts.RENEW)

    async def count(self, scopes: Sequence[Scope]) -> Reserved:
        """One request, whatever it asks for."""
        return await self._ask(scopes, "", requests=1, tokens=0, runs=False)

    async def reserve(self, scopes: Sequence[Scope], request_id: str, tokens: int, *, counts: bool = False) -> Reserved:
        """Tokens, and a place among those that run, until `settle` or until the lease is over. May be asked twice.

        `counts`: and one request, as `count` does; a refusal takes nothing of all that.
        """
        return await self._ask(scopes, request_id, requests=int(counts), tokens=tokens, runs=True)

    async def settle(self, scopes: Sequence[Scope], reserved: Reserved, tokens: int, usage: UsageRecord) -> bool:
        """Puts what was used in the place of what was reserved (`tokens`); False when that was done before."""
        fields = [str(part) for pair in usage.settled.items() for part in pair]
        ask = {
            "id": usage.request_id,
            "at": reserved.at,
            "reserved": tokens,
            "tokens": usage.prompt_tokens + usage.completion_tokens,
            "kv": usage.kv_byte_seconds,
            "scopes": [scope.as_ask() for scope in scopes],
            "usage": fields,
            "max_records": MAX_USAGE_RECORDS,
        }
        async with calling(self._redis):
            return bool(await self._settle(args=(json.dumps(ask),)))

    async def renew(self, leases: Iterable[tuple[str, str]]) -> None:
        """The leases of those that run: pairs of a scope's name and a request's id."""
        ask = {"lease_ms": int(self.lease_s * 1e3), "leases": list(leases)}
        if ask["leases"]:
            async with calling(self._redis):
                await self._renew(args=(json.dumps(ask),))

    async def _ask(
        self, scopes: Sequence[Scope], request_id: str, *, requests: int, tokens: int, runs: bool
    ) -> Reserved:
        ask = {
            "id": request_id,
            "lease_ms": int(self.lease_s * 1e3),
            "requests": requests,
            "tokens": tokens,
            "runs": runs,
            "scopes": [scope.as_ask() for scope in scopes],
        }
        async with calling(self._redis):
            answer = json.loads(await self._reserve(args=(json.dumps(ask),)))
        refused = answer.get("refused")
        levels = [Level(**level) if (level := answer.get(kind)) else None for kind in ("requests", "tokens")]
        return Reserved(answer["at"], Refusal(**refused) if refused else None, *levels)
