"""How much service each tenant got from all gateways together: each allows for what the others gave. In Redis."""

import json
from collections.abc import Collection, Mapping

from redis.asyncio import Redis

from gemline.cluster.connection import calling

SERVED = "gemline:{served}"  # hash: tenant -> weighted tokens, ever
_FORGET_S = 3600  # after nobody was served for so long

# ARGV: JSON with `fresh` (tenant -> amount) and `known` (tenants). Gives the totals of the known ones, in their order.
_EXCHANGE = f"""
local ask = cjson.decode(ARGV[1])
for tenant, amount in pairs(ask.fresh) do redis.call('HINCRBYFLOAT', KEYS[1], tenant, amount) end
redis.call('EXPIRE', KEYS[1], {_FORGET_S})
if #ask.known == 0 then return {{}} end
return redis.call('HMGET', KEYS[1], unpack(ask.known))
"""


class ServedElsewhere:
    """One gateway's view of the others."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._exchange = redis.register_script(_EXCHANGE)
        self._totals: dict[str, float] = {}  # as of the last exchange

    async def exchange(self, fresh: Mapping[str, float], known: Collection[str]) -> dict[str, float]:
        """Tells what was served here since the last time; gives what the known tenants were served elsewhere since.

        A tenant that was not known the last time begins at nothing. Raises Unavailable while Redis is away.
        """
        names = list(known)
        async with calling(self._redis):
            found = await self._exchange(keys=(SERVED,), args=(_ask(fresh, names),))
        totals = {name: float(total or 0) for name, total in zip(names, found, strict=True)}
        elsewhere = {
            name: max(0.0, total - self._totals[name] - fresh.get(name, 0.0))
            for name, total in totals.items()
            if name in self._totals
        }
        self._totals = totals
        return {name: amount for name, amount in elsewhere.items() if amount}


def _ask(fresh: Mapping[str, float], known: list[str]) -> str:
    return json.dumps({"fresh": dict(fresh), "known": known})
