"""Tenants, projects and keys in Redis, every change with its line in the audit. For operators: no request comes here.

gemline:{access}:tenants    hash    tenant -> JSON
gemline:{access}:projects   hash    tenant/project -> JSON
gemline:{access}:keys       hash    key id -> JSON, with the key's digest, never the key
gemline:{access}:audit      stream  who, what, of which, before, after; never a secret, never a prompt
"""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from redis.asyncio import Redis

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord, check_name
from gemline.cluster.connection import calling
from gemline.cluster.keys import KEYS, PROJECTS, TENANTS, digest_of, new_key, project_field
from gemline.errors import ConfigurationError, Conflict, NotFound

AUDIT = "gemline:{access}:audit"
MAX_ACTIVE = 2  # keys that may hold at once while one is rotated out
DEFAULT_GRACE_S = 24 * 3600.0

# KEYS: a hash, the audit. ARGV: field; its value before, '' for none; after, '' for none; fields of the audit's line.
# Gives 0 when the value was another one by then.
_CHANGE = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
local at_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('XADD', KEYS[2], '*', 'at_ms', at_ms, unpack(ARGV, 4))
return 1
"""

RecordT = TypeVar("RecordT", TenantRecord, ProjectRecord, KeyRecord)


class NewKey(NamedTuple):
    """A key, shown this once."""

    key: str
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One change. `before` and `after` are JSON, empty where there was nothing."""

    at_ms: int
    actor: str
    action: str
    subject: str
    before: str
    after: str


class AccessStore:
    """Changes by `actor`, a name for the audit. Every method raises Unavailable when Redis does not answer in time."""

    def __init__(self, redis: Redis, actor: str) -> None:
        self._redis = redis
        self._actor = actor[:200]
        self._change = redis.register_script(_CHANGE)

    async def tenant(self, tenant_id: str) -> TenantRecord:
        """Raises NotFound."""
        return _found(await self._get(TENANTS, tenant_id, TenantRecord), f"tenant {tenant_id!r}")

    async def tenants(self) -> tuple[TenantRecord, ...]:
        """By name."""
        return await self._all(TENANTS, TenantRecord)

    async def put_tenant(self, record: TenantRecord, *, is_new: bool) -> TenantRecord:
        """Make one, or change it. Raises Conflict or NotFound when it is there or is not."""
        return await self._put("tenant", TENANTS, record.tenant_id, record, is_new)

    async def delete_tenant(self, tenant_id: str) -> None:
        """With its projects and keys; what runs ends as it would. Raises NotFound."""
        record = await self.tenant(tenant_id)
        for key in await self.keys(tenant_id):
            await self.revoke(key.key_id)
        for project in await self.projects(tenant_id):
            await self.delete_project(tenant_id, project.project_id)
        await self._write("tenant.delete", TENANTS, tenant_id, record, None)

    async def project(self, tenant_id: str, project_id: str) -> ProjectRecord:
        """Raises NotFound."""
        found = await self._get(PROJECTS, project_field(tenant_id, project_id), ProjectRecord)
        return _found(found, f"project {project_id!r} of tenant {tenant_id!r}")

    async def projects(self, tenant_id: str) -> tuple[ProjectRecord, ...]:
        """Of a tenant, by name."""
        return tuple(one for one in await self._all(PROJECTS, ProjectRecord) if one.tenant_id == tenant_id)

    async def put_project(self, record: ProjectRecord, *, is_new: bool) -> ProjectRecord:
        """Make one, or change it. Raises Conflict or NotFound."""
        await self.tenant(record.tenant_id)
        return await self._put("project", PROJECTS, project_field(record.tenant_id, record.project_id), record, is_new)

    async def delete_project(self, tenant_id: str, project_id: str) -> None:
        """Its keys are refused from then on. Raises NotFound."""
        record = await self.project(tenant_id, project_id)
        for key in await self.keys(tenant_id):
            if key.project_id == project_id:
                await self.revoke(key.key_id)
        await self._write("project.delete", PROJECTS, project_field(tenant_id, project_id), record, None)

    async def key(self, key_id: str) -> KeyRecord:
        """Raises NotFound."""
        return _found(await self._get(KEYS, key_id, KeyRecord), f"key {key_id!r}")

    async def keys(self, tenant_id: str) -> tuple[KeyRecord, ...]:
        """Of a tenant, by id; expired ones too, until they are revoked."""
        return tuple(one for one in await self._all(KEYS, KeyRecord) if one.tenant_id == tenant_id)

    async def create_key(self, wanted: KeyRecord) -> NewKey:
        """A new key of that tenant, project, limits and so on; its id and digest are made here.

        Raises NotFound for a project that is not there. A tenant that is not there is made, without limits.
        """
        check_name("tenant", wanted.tenant_id)
        if await self._get(TENANTS, wanted.tenant_id, TenantRecord) is None:
            await self.put_tenant(TenantRecord(wanted.tenant_id), is_new=True)
        if wanted.project_id:
            await self.project(wanted.tenant_id, wanted.project_id)
        key_id, key = new_key()
        made = replace(wanted, key_id=key_id, digest=digest_of(key))
        return NewKey(key, await self._put("key", KEYS, key_id, made, is_new=True))

    async def update_key(self, record: KeyRecord) -> KeyRecord:
        """Change limits, models, label or expiry. Raises NotFound."""
        return await self._put("key", KEYS, record.key_id, record, is_new=False)

    async def rotate(self, key_id: str, grace_s: float = DEFAULT_GRACE_S) -> NewKey:
        """A new key in the place of that one, which holds for `grace_s` longer. Raises NotFound and Conflict."""
        old = await self.key(key_id)
        if old.replaced_by:
            raise Conflict(
                f"key {key_id} is being rotated out already, by {old.replaced_by}: at most {MAX_ACTIVE} hold"
            )
        made = await self.create_key(replace(old, created_ms=0, expires_ms=0, replaced_by=""))
        ends_ms = await self._now_ms() + int(grace_s * 1e3)
        ends_ms = min(ends_ms, old.expires_ms) if old.expires_ms else ends_ms
        await self.update_key(replace(old, expires_ms=ends_ms, replaced_by=made.record.key_id))
        return made

    async def revoke(self, key_id: str) -> None:
        """Refused from then on, by every gateway within seconds. Raises NotFound."""
        await self._write("key.revoke", KEYS, key_id, await self.key(key_id), None)

    async def audit(self, limit: int = 1000, before: str = "+") -> AsyncIterator[AuditLine]:
        """The newest first."""
        async with calling(self._redis):
            found = await self._redis.xrevrange(AUDIT, max=before, count=limit)
        for _, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", found):
            values = {name.decode(): value.decode() for name, value in fields.items()}
            yield AuditLine(int(values.pop("at_ms")), **values)

    async def _put(self, kind: str, name: str, field: str, record: RecordT, is_new: bool) -> RecordT:
        before = await self._get(name, field, type(record))
        if is_new and before is not None:
            raise Conflict(f"{kind} {field!r} is there already")
        if before is None and not is_new:
            raise NotFound(f"there is no {kind} {field!r}")
        created_ms = await self._now_ms() if before is None else before.created_ms
        record = replace(record, created_ms=created_ms)
        await self._write(f"{kind}.{'create' if is_new else 'update'}", name, field, before, record)
        return record

    async def _write(self, action: str, name: str, field: str, before: RecordT | None, after: RecordT | None) -> None:
        told: tuple[str, ...] = ("actor", self._actor, "action", action, "subject", field)
        states: tuple[str, ...] = ("before", _audited(before), "after", _audited(after))
        args = (field, before.to_json() if before else "", after.to_json() if after else "", *told, *states)
        async with calling(self._redis):
            changed = await self._change(keys=(name, AUDIT), args=args)
        if not changed:
            raise Conflict(f"{action.partition('.')[0]} {field!r} was changed by somebody else; look at it again")

    async def _get(self, name: str, field: str, kind: type[RecordT]) -> RecordT | None:
        async with calling(self._redis):
            found = await self._redis.hget(name, field)
        return None if found is None else kind.from_json(found)

    async def _all(self, name: str, kind: type[RecordT]) -> tuple[RecordT, ...]:
        async with calling(self._redis):
            found = await self._redis.hgetall(name)
        return tuple(kind.from_json(found[field]) for field in sorted(found))

    async def _now_ms(self) -> int:
        async with calling(self._redis):
            seconds, microseconds = await self._redis.time()
        return seconds * 1000 + microseconds // 1000


def _found(record: RecordT | None, what: str) -> RecordT:
    if record is None:
        raise NotFound(f"there is no {what}")
    return record


def _audited(record: TenantRecord | ProjectRecord | KeyRecord | None) -> str:
    if record is None:
        return ""
    values: dict[str, Any] = record.public() if isinstance(record, KeyRecord) else asdict(record)
    return json.dumps(values, separators=(",", ":"), sort_keys=True)


def checked_grace(grace_s: float) -> float:
    """Raises ConfigurationError for what is no time."""
    if not 0 <= grace_s <= 366 * 24 * 3600:
        raise ConfigurationError(f"grace must be from 0 to {366 * 24 * 3600} s, is {grace_s}", param="grace_s")
    return grace_s
