"""Whose an API key is. Keys are stored as SHA-256 only, in Redis; an operator's file may add more."""

import hashlib
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError, Unavailable

KEYS = "gemline:keys"  # hash: SHA-256 of the key, hex -> tenant

FRESH_S = 5.0  # a key taken away is refused after this long
STALE_S = 60.0  # while Redis is away, a key seen this lately still holds
_MAX_CACHED = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    tenant: str | None
    at_s: float  # monotonic


class ApiKeys:
    """The keys in Redis, those in a file, or both."""

    def __init__(self, redis: Redis | None, file: Path | None, fresh_s: float = FRESH_S) -> None:
        """`file` has lines `tenant:key`; empty lines and lines that begin with # are left out. It may change later."""
        self._redis = redis
        self._file = file
        self._fresh_s = fresh_s
        self._cache: dict[str, _Answer] = {}
        self._file_tenants: dict[str, str] = {}
        self._file_version: tuple[int, int] | None = None
        self._file_checked_s = float("-inf")

    async def tenant_of(self, key: str) -> str | None:
        """The tenant whose key it is, None when it is nobody's. Raises Unavailable when that cannot be found out.

        Only digests are looked up and compared, so the time it takes tells nothing about any key.
        """
        digest = digest_of(key)
        if (tenant := self._in_file(digest)) is not None or self._redis is None:
            return tenant
        now_s = time.monotonic()
        cached = self._cache.get(digest)
        if cached is not None and now_s < cached.at_s + self._fresh_s:
            return cached.tenant
        try:
            tenant = await self._in_redis(self._redis, digest)
        except Unavailable:
            if cached is not None and cached.tenant is not None and now_s < cached.at_s + STALE_S:
                return cached.tenant
            raise
        if len(self._cache) >= _MAX_CACHED:  # somebody tries keys
            self._cache.clear()
        self._cache[digest] = _Answer(tenant, now_s)
        return tenant

    async def add(self, tenant: str) -> str:
        """A new key of `tenant`, gk_<id>_<secret>. It is shown this once: only its digest is kept, in Redis."""
        if self._redis is None:
            raise ConfigurationError(
                "a new key is kept in Redis: give redis_url, or write it to keys_file", param="redis_url"
            )
        check_tenant(tenant)
        key = new_key()
        digest = digest_of(key)
        async with calling(self._redis):
            await self._redis.hset(KEYS, digest, tenant)
        self._cache.pop(digest, None)
        return key

    async def _in_redis(self, redis: Redis, digest: str) -> str | None:
        async with calling(redis):
            tenant = await redis.hget(KEYS, digest)
        return tenant.decode() if isinstance(tenant, bytes) else tenant

    def _in_file(self, digest: str) -> str | None:
        if self._file is None:
            return None
        now_s = time.monotonic()
        if now_s >= self._file_checked_s + self._fresh_s:
            self._read_file(self._file)
            self._file_checked_s = now_s
        return self._file_tenants.get(digest)

    def _read_file(self, file: Path) -> None:
        """Takes the file's present content; raises ConfigurationError at the first read, keeps the old one later."""
        try:
            status = file.stat()
            version = (status.st_mtime_ns, status.st_size)
            if version != self._file_version:
                self._file_tenants = read_keys(file)
                self._file_version = version
        except (OSError, UnicodeError, ConfigurationError) as error:
            if self._file_version is None:
                raise ConfigurationError(f"keys_file {file} cannot be used: {error}", param="keys_file") from error
            logger.error("keys_file %s cannot be used, the keys read before still hold: %s", file, error)


def new_key() -> str:
    """gk_<id>_<secret>: a key that nobody has yet. The secret has 192 random bits."""
    return f"gk_{secrets.token_hex(4)}_{secrets.token_hex(24)}"


def digest_of(key: str) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def check_tenant(tenant: str) -> None:
    """Raises ConfigurationError unless the name can stand in a keys file, a log line and a metric's label."""
    if not tenant or len(tenant) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in tenant):
        raise ConfigurationError(
            f"tenant {tenant[:80]!r}: a name is 1 to 64 letters, digits, '-', '_' or '.'", param="tenant"
        )


def read_keys(file: Path) -> dict[str, str]:
    """Digest -> tenant of every key in the file. Raises ConfigurationError naming the line, never showing the key."""
    tenants: dict[str, str] = {}
    for number, raw in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        tenant, colon, key = line.partition(":")
        if not colon or not key.strip():
            raise ConfigurationError(f"line {number} is not tenant:key", param="keys_file")
        check_tenant(tenant.strip())
        tenants[digest_of(key.strip())] = tenant.strip()
    return tenants
