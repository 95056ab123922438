"""The list of one tenant's sessions, in a slot of its own. What it says is checked against the sessions themselves."""

import contextlib
from typing import NamedTuple

from redis.asyncio import Redis

from gemline.cluster import session_scripts as scripts
from gemline.cluster.session_names import SessionNames
from gemline.cluster.session_records import SessionRecord
from gemline.cluster.session_redis import reaching
from gemline.errors import InvalidRequest, Unavailable

_MAX_DIGITS = 16  # of a Redis TIME in us, until the year 2286


class Listed(NamedTuple):
    """Ids, the newest first, and what asks for those after them; empty at the end."""

    session_ids: list[str]
    after: str


class SessionIndex:
    """Sessions whose time is over leave it when the tenant makes, uses or lists another one."""

    def __init__(self, redis: Redis, names: SessionNames, keep_s: float) -> None:
        """`keep_s`: no session lives for longer after its last turn."""
        self._redis = redis
        self._names = names
        self._keep_ms = round(keep_s * 1000)
        self._enlist = redis.register_script(scripts.ENLIST)
        self._page = redis.register_script(scripts.PAGE)

    async def add(self, tenant_id: str, record: SessionRecord) -> None:
        """It is there, until its end."""
        args = (record.session_id, record.made_us, round(record.ends_s * 1000), self._keep_ms)
        async with reaching(self._redis):
            await self._enlist(keys=self._names.index(tenant_id), args=args)

    async def touch(self, tenant_id: str, record: SessionRecord) -> None:
        """Its end is later now. When that cannot be said it may be missing in the list, until its next turn."""
        with contextlib.suppress(Unavailable):
            await self.add(tenant_id, record)

    async def remove(self, tenant_id: str, session_id: str) -> None:
        """It is gone. When that cannot be said its end will tell."""
        keys = self._names.index(tenant_id)
        with contextlib.suppress(Unavailable):
            async with reaching(self._redis), self._redis.pipeline() as calls:
                calls.zrem(keys.made, session_id)
                calls.zrem(keys.ends, session_id)
                await calls.execute()

    async def page(self, tenant_id: str, limit: int, after: str) -> Listed:
        """Up to `limit` of them, those after a page that gave `after`; raises InvalidRequest when no page did."""
        if after and not (after.isascii() and after.isdigit() and len(after) <= _MAX_DIGITS):
            raise InvalidRequest(f"after is {after[:80]!r}, which no list gave", param="after")
        # No two are made in the same microsecond: Redis makes one after the other.
        args = (f"({after}" if after else "+inf", limit + 1)
        async with reaching(self._redis):
            found = await self._page(keys=self._names.index(tenant_id), args=args)
        ids = [session_id.decode() for session_id in found[::2]]
        return Listed(ids[:limit], str(int(float(found[2 * limit - 1]))) if len(ids) > limit else "")
