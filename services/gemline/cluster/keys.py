"""Whose an API key is, and what it gives: found in Redis by its id and digest; an operator's file may add more keys."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from gemline.cluster.access import Access, KeyRecord, ProjectRecord, TenantRecord, check_name
from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError, Unavailable

TENANTS, PROJECTS, KEYS = (f"gemline:{{access}}:{name}" for name in ("tenants", "projects", "keys"))

FRESH_S = 5.0  # a key taken away is refused after this long
STALE_S = 60.0  # while Redis is away, a key seen this lately still holds
_MAX_CACHED = 10_000
_KEY = re.compile(r"gk_([0-9a-f]{8,32})_[0-9a-f]{48}", re.ASCII)

# KEYS: tenants, projects, keys. ARGV: a key's id or '', a tenant. Gives Redis's time in ms and three times JSON, '' for
# none: the key, the tenant (the key's, where there is a key), the project.
_FIND = """
local time = redis.call('TIME')
local key = ARGV[1] ~= '' and redis.call('HGET', KEYS[3], ARGV[1]) or ''
local tenant, project = ARGV[2], ''
if key ~= '' then
  local record = cjson.decode(key)
  tenant = record.tenant_id
  if record.project_id ~= '' then
    project = redis.call('HGET', KEYS[2], tenant .. '/' .. record.project_id) or ''
  end
end
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return {now_ms, key, redis.call('HGET', KEYS[1], tenant) or '', project}
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    access: Access | None
    at_s: float  # monotonic
    ends_s: float = float("inf")  # monotonic: the key expires then


class ApiKeys:
    """The keys in Redis, those in a file, or both."""

    def __init__(self, redis: Redis | None, file: Path | None, fresh_s: float = FRESH_S) -> None:
        """`file` has lines `tenant:key`; empty lines and lines that begin with # are left out. It may change later."""
        self._redis = redis
        self._file = file
        self._fresh_s = fresh_s
        self._find = None if redis is None else redis.register_script(_FIND)
        self._cache: dict[str, _Answer] = {}
        self._asking: dict[str, asyncio.Task[_Answer]] = {}  # many who come with one key at a time ask once
        self._file_tenants: dict[str, str] = {}
        self._file_version: tuple[int, int] | None = None
        self._file_checked_s = float("-inf")

    async def access_of(self, key: str) -> Access | None:
        """What the key gives, None when it is nobody's. Raises Unavailable when that cannot be found out.

        Only digests are compared, and in constant time, so the time it takes tells nothing about any key. A key of the
        file gives its tenant's access as Redis has it; while that is away and was never asked, access without limits.
        """
        digest = digest_of(key)
        tenant = self._in_file(digest)
        found = _KEY.fullmatch(key)
        if tenant is None and (self._redis is None or found is None):
            return None
        now_s = time.monotonic()
        cached = self._cache.get(digest)
        if cached is None or now_s >= cached.at_s + self._fresh_s:
            try:
                cached = await self._ask_once("" if tenant or not found else found[1], tenant or "", digest)
            except Unavailable:
                if tenant is not None and cached is None:
                    return Access(TenantRecord(tenant))
                if cached is None or cached.access is None or now_s >= cached.at_s + STALE_S:
                    raise
            else:
                if len(self._cache) >= _MAX_CACHED:  # somebody tries keys
                    self._cache.clear()
                self._cache[digest] = cached
        return cached.access if now_s < cached.ends_s else None

    async def _ask_once(self, key_id: str, tenant: str, digest: str) -> _Answer:
        if digest not in self._asking:
            asking = self._asking[digest] = asyncio.create_task(self._ask(key_id, tenant, digest))
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(self._asking[digest])

    def _asked(self, digest: str, done: "asyncio.Task[_Answer]") -> None:
        del self._asking[digest]
        if not done.cancelled():
            done.exception()  # is known to whoever still waits; that may be nobody

    async def _ask(self, key_id: str, tenant: str, digest: str) -> _Answer:
        """Of a key in Redis by its id, of one in the file by its tenant."""
        now_s = time.monotonic()
        if self._redis is None or self._find is None:
            return _Answer(Access(TenantRecord(tenant)), now_s)
        async with calling(self._redis):
            now_ms, *found = await self._find(keys=(TENANTS, PROJECTS, KEYS), args=(key_id, tenant))
        key_json, tenant_json, project_json = found
        if not key_id:
            record = TenantRecord.from_json(tenant_json) if tenant_json else TenantRecord(tenant)
            return _Answer(Access(record), now_s)
        if not key_json or not tenant_json:
            return _Answer(None, now_s)
        key = KeyRecord.from_json(key_json)
        if not hmac.compare_digest(key.digest, digest) or (key.project_id and not project_json):
            return _Answer(None, now_s)
        project = ProjectRecord.from_json(project_json) if project_json else None
        ends_s = now_s + (key.expires_ms - int(now_ms)) / 1e3 if key.expires_ms else float("inf")
        return _Answer(Access(TenantRecord.from_json(tenant_json), project, key), now_s, ends_s)

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


def new_key() -> tuple[str, str]:
    """An id, and the key gk_<id>_<secret> that nobody has yet; the secret has 192 random bits."""
    key_id = secrets.token_hex(6)
    return key_id, f"gk_{key_id}_{secrets.token_hex(24)}"


def digest_of(key: str) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def project_field(tenant_id: str, project_id: str) -> str:
    """Under which a project stands in PROJECTS."""
    return f"{tenant_id}/{project_id}"


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
        check_name("tenant", tenant.strip())
        tenants[digest_of(key.strip())] = tenant.strip()
    return tenants
