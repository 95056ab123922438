"""All that an operator works with, over one Redis: who may use the platform, what was used, what was changed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from gemline.cluster.access_store import AccessStore
from gemline.cluster.audit import Audit
from gemline.cluster.connection import connect
from gemline.cluster.public_prefixes import PublicPrefixes
from gemline.cluster.releases import ReleaseShares
from gemline.cluster.usage import UsageLog


class Operations:
    """The Redis stays its owner's."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.usage = UsageLog(redis)
        self.audit = Audit(redis)

    def access(self, actor: str) -> AccessStore:
        """Tenants, projects and keys, changed by `actor`."""
        return AccessStore(self._redis, actor)

    def releases(self, actor: str) -> ReleaseShares:
        """Shares of releases, changed by `actor`."""
        return ReleaseShares(self._redis, actor)

    def prefixes(self, actor: str) -> PublicPrefixes:
        """Public prefixes, changed by `actor`."""
        return PublicPrefixes(self._redis, actor)


@asynccontextmanager
async def operating(redis_url: str) -> AsyncIterator[Operations]:
    """Over a connection of its own."""
    redis = connect(redis_url)
    try:
        yield Operations(redis)
    finally:
        await redis.aclose()
