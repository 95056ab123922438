"""Answers kept for a while under a client's Idempotency-Key: a request sent twice is answered once. In Redis."""

import hashlib
import json
from base64 import b64decode, b64encode
from typing import NamedTuple

from redis.asyncio import Redis

from gemline.cluster.connection import calling

KEPT_S = 600  # an answer, from its end
RUNNING_S = 60  # the claim of a gateway that died; renewed by one that lives

# KEYS: the entry. ARGV: JSON of a claim, ms. Gives the entry that is there, or nothing.
_BEGIN = """
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""


class Kept(NamedTuple):
    """What is known of an earlier request of that key."""

    fingerprint: str
    is_running: bool
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None  # None: too long to be kept


class IdempotencyStore:
    """By tenant and key. Methods raise Unavailable when Redis does not answer in time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._begin = redis.register_script(_BEGIN)

    async def begin(self, tenant_id: str, key: str, fingerprint: str) -> Kept | None:
        """Claims the key for a request; what is there of an earlier one, None: it is the first."""
        claim = json.dumps({"fingerprint": fingerprint, "is_running": True})
        async with calling(self._redis):
            found = await self._begin(keys=(_name(tenant_id, key),), args=(claim, RUNNING_S * 1000))
        return _kept(found) if found else None

    async def renew(self, tenant_id: str, key: str) -> None:
        """It still runs."""
        async with calling(self._redis):
            await self._redis.expire(_name(tenant_id, key), RUNNING_S)

    async def finish(self, tenant_id: str, key: str, kept: Kept) -> None:
        """Its answer has ended and is kept."""
        entry = {
            "fingerprint": kept.fingerprint,
            "is_running": False,
            "status": kept.status,
            "headers": kept.headers,
            "body": None if kept.body is None else b64encode(kept.body).decode(),
        }
        async with calling(self._redis):
            await self._redis.set(_name(tenant_id, key), json.dumps(entry), ex=KEPT_S)

    async def forget(self, tenant_id: str, key: str) -> None:
        """It came to nothing: the next request of that key is the first."""
        async with calling(self._redis):
            await self._redis.delete(_name(tenant_id, key))


def _name(tenant_id: str, key: str) -> str:
    digest = hashlib.sha256(f"{tenant_id}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"gemline:{{idempotency}}:{digest}"


def _kept(found: bytes) -> Kept:
    entry = json.loads(found)
    body = entry.get("body")
    headers = tuple((str(name), str(value)) for name, value in entry.get("headers", ()))
    return Kept(
        entry["fingerprint"],
        entry["is_running"],
        entry.get("status", 0),
        headers,
        None if body is None else b64decode(body),
    )
