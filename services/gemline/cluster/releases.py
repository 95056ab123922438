"""Which share of a model's new requests the workers of each release get, as an operator has said. In Redis."""

import json
from collections.abc import Mapping
from typing import cast

from redis.asyncio import Redis

from gemline.cluster.audit import Audit
from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError

RELEASE_SHARES = "gemline:release_shares"  # hash: model -> JSON, release -> share

Shares = Mapping[str, float]  # by release, all together 1


class ReleaseShares:
    """Those in Redis; a model that is not there is served by its oldest release. Raises Unavailable without Redis."""

    def __init__(self, redis: Redis, actor: str = "operator") -> None:
        """Changed by `actor`, a name for the audit."""
        self._redis = redis
        self._actor = actor
        self._audit = Audit(redis)

    async def put(self, model_id: str, shares: Shares) -> None:
        """From now on. Raises ConfigurationError for shares that cannot be."""
        if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
            raise ConfigurationError(f"shares of releases are {dict(shares)}: none may be below 0, all together are 1")
        told = json.dumps(dict(shares), sort_keys=True)
        async with calling(self._redis):
            before = cast(bytes, await self._redis.hget(RELEASE_SHARES, model_id) or b"")
            await self._redis.hset(RELEASE_SHARES, model_id, told)
        await self._audit.add(self._actor, "release.shares", model_id, before.decode(), told)

    async def all(self) -> dict[str, Shares]:
        """By model."""
        async with calling(self._redis):
            stored = await self._redis.hgetall(RELEASE_SHARES)
        return {cast(bytes, model).decode(): json.loads(shares) for model, shares in stored.items()}
