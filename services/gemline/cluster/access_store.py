"""Tenants, projects and keys in Redis, every change with its line in the audit. For operators: no request comes here.

gemline:{access}:tenants    hash    tenant -> JSON
gemline:{access}:projects   hash    tenant/project -> JSON
gemline:{access}:keys       hash    key id -> JSON, with the key's digest, never the key
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Generic, NamedTuple, TypeVar

from redis.asyncio import Redis

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord, check_name
from gemline.cluster.audit import AUDIT
from gemline.cluster.connection import calling
from gemline.cluster.keys import KEYS, PROJECTS, TENANTS, digest_of, new_key, project_field
from gemline.errors import ConfigurationError, Conflict, NotFound

MAX_ACTIVE = 2  # keys that may hold at once while one is rotated out
DEFAULT_GRACE_S = 24 * 3600.0
MAX_GRACE_S = 366 * 24 * 3600  # that a key holds after it was rotated
MAX_EXPIRY_S = 10 * 366 * 24 * 3600  # that a key may be told to hold
_MAX_TRIES = 20  # of one change, while others change the same

# KEYS: a hash, the audit, tenants. ARGV: field; its value before, '' for none; after, '' for none; a tenant that must
# be there, '' for none; fields of the audit's line. Gives 0 when the value was another by then, or the tenant was gone.
_CHANGE = """
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[4]) == 0 then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5))
return 1
"""

# KEYS: tenants, projects, keys, the audit. ARGV: the tenant; how many projects and keys it has; then of each of them,
# keys, projects, the tenant: which of KEYS, field, value before, and the ten of the audit's line. All goes or nothing;
# gives 0 when anything was another by then, or more was there.
_DELETE_TENANT = """
local counts = {0, 0}
for kind = 1, 2 do
  for _, value in ipairs(redis.call('HVALS', KEYS[kind + 1])) do
    if cjson.decode(value).tenant_id == ARGV[1] then counts[kind] = counts[kind] + 1 end
  end
  if counts[kind] ~= tonumber(ARGV[kind + 1]) then return 0 end
end
for at = 4, #ARGV, 13 do
  if redis.call('HGET', KEYS[tonumber(ARGV[at])], ARGV[at + 1]) ~= ARGV[at + 2] then return 0 end
end
for at = 4, #ARGV, 13 do
  redis.call('HDEL', KEYS[tonumber(ARGV[at])], ARGV[at + 1])
  redis.call('XADD', KEYS[4], '*', unpack(ARGV, at + 3, at + 12))
end
return 1
"""

RecordT = TypeVar("RecordT", TenantRecord, ProjectRecord, KeyRecord)


class NewKey(NamedTuple):
    """A key, shown this once."""

    key: str
    record: KeyRecord


class _Stored(NamedTuple, Generic[RecordT]):
    text: str  # as it stands in Redis, with what a later release may have put there
    record: RecordT


class AccessStore:
    """Changes by `actor`, a name for the audit. Every method raises Unavailable when Redis does not answer in time."""

    def __init__(self, redis: Redis, actor: str) -> None:
        self._redis = redis
        self._actor = actor[:200]
        self._change = redis.register_script(_CHANGE)
        self._delete_all = redis.register_script(_DELETE_TENANT)

    async def tenant(self, tenant_id: str) -> TenantRecord:
        """Raises NotFound."""
        return (await self._existing("tenant", TENANTS, tenant_id, TenantRecord)).record

    async def tenants(self) -> tuple[TenantRecord, ...]:
        """By name."""
        return tuple(one.record for one in (await self._stored(TENANTS, TenantRecord)).values())

    async def put_tenant(self, record: TenantRecord, *, is_new: bool) -> TenantRecord:
        """Make one, or change it. Raises Conflict or NotFound when it is there or is not."""
        return await self._put("tenant", TENANTS, record.tenant_id, record, is_new)

    async def amend_tenant(self, tenant_id: str, change: Callable[[TenantRecord], TenantRecord]) -> TenantRecord:
        """What `change` makes of it. Of changes at the same time none is lost. Raises NotFound."""
        return await self._amend("tenant", TENANTS, tenant_id, TenantRecord, change)

    async def delete_tenant(self, tenant_id: str) -> None:
        """With its projects and keys, all at once; what runs ends as it would. Raises NotFound."""
        for _ in range(_MAX_TRIES):
            tenant = await self._existing("tenant", TENANTS, tenant_id, TenantRecord)
            projects = await self._stored(PROJECTS, ProjectRecord, tenant_id)
            keys = await self._stored(KEYS, KeyRecord, tenant_id)
            args: list[str] = [tenant_id, str(len(projects)), str(len(keys))]
            for field, key in keys.items():
                args += ["3", field, key.text, *self._told("key.revoke", field, key.record, None)]
            for field, project in projects.items():
                args += ["2", field, project.text, *self._told("project.delete", field, project.record, None)]
            args += ["1", tenant_id, tenant.text, *self._told("tenant.delete", tenant_id, tenant.record, None)]
            async with calling(self._redis):
                if await self._delete_all(keys=(TENANTS, PROJECTS, KEYS, AUDIT), args=args):
                    return
        raise Conflict(f"tenant {tenant_id!r} is changed by others all the time; try again")

    async def project(self, tenant_id: str, project_id: str) -> ProjectRecord:
        """Raises NotFound."""
        return (await self._existing("project", PROJECTS, project_field(tenant_id, project_id), ProjectRecord)).record

    async def projects(self, tenant_id: str) -> tuple[ProjectRecord, ...]:
        """Of a tenant, by name."""
        return tuple(one.record for one in (await self._stored(PROJECTS, ProjectRecord, tenant_id)).values())

    async def put_project(self, record: ProjectRecord, *, is_new: bool) -> ProjectRecord:
        """Make one, or change it. Raises Conflict or NotFound."""
        await self.tenant(record.tenant_id)
        return await self._put("project", PROJECTS, project_field(record.tenant_id, record.project_id), record, is_new)

    async def amend_project(
        self, tenant_id: str, project_id: str, change: Callable[[ProjectRecord], ProjectRecord]
    ) -> ProjectRecord:
        """As `amend_tenant`."""
        return await self._amend("project", PROJECTS, project_field(tenant_id, project_id), ProjectRecord, change)

    async def delete_project(self, tenant_id: str, project_id: str) -> None:
        """Its keys are refused from then on. Raises NotFound."""
        await self.project(tenant_id, project_id)
        for key in await self.keys(tenant_id):
            if key.project_id == project_id:
                await self.revoke(key.key_id)
        await self._delete("project.delete", PROJECTS, project_field(tenant_id, project_id), ProjectRecord)

    async def key(self, key_id: str) -> KeyRecord:
        """Raises NotFound."""
        return (await self._existing("key", KEYS, key_id, KeyRecord)).record

    async def keys(self, tenant_id: str) -> tuple[KeyRecord, ...]:
        """Of a tenant, by id; expired ones too, until they are revoked."""
        return tuple(one.record for one in (await self._stored(KEYS, KeyRecord, tenant_id)).values())

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

    async def amend_key(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        """As `amend_tenant`: limits, models, label or expiry."""
        return await self._amend("key", KEYS, key_id, KeyRecord, change)

    async def rotate(self, key_id: str, grace_s: float = DEFAULT_GRACE_S, expires_ms: int = 0) -> NewKey:
        """A new key in the place of that one, which holds for `grace_s` longer; the new one until `expires_ms`.

        Raises NotFound, and Conflict while that one is being rotated out already.
        """
        checked_grace(grace_s)
        old = await self.key(key_id)
        _check_unreplaced(old)
        made = await self.create_key(replace(old, created_ms=0, expires_ms=expires_ms, replaced_by=""))
        ends_ms = await self.now_ms() + int(grace_s * 1e3)

        def replaced(old: KeyRecord) -> KeyRecord:
            _check_unreplaced(old)
            until_ms = min(ends_ms, old.expires_ms) if old.expires_ms else ends_ms
            return replace(old, expires_ms=until_ms, replaced_by=made.record.key_id)

        try:
            await self.amend_key(key_id, replaced)
        except (Conflict, NotFound):  # somebody was faster; a third key must not hold
            with suppress(NotFound):
                await self.revoke(made.record.key_id)
            raise
        return made

    async def revoke(self, key_id: str) -> None:
        """Refused from then on, by every gateway within seconds. Raises NotFound."""
        await self._delete("key.revoke", KEYS, key_id, KeyRecord)

    async def now_ms(self) -> int:
        """Of Redis's clock."""
        async with calling(self._redis):
            seconds, microseconds = await self._redis.time()
        return seconds * 1000 + microseconds // 1000

    async def _put(self, kind: str, name: str, field: str, record: RecordT, is_new: bool) -> RecordT:
        before = await self._get(name, field, type(record))
        if is_new and before is not None:
            raise Conflict(f"{kind} {field!r} is there already")
        if before is None and not is_new:
            raise NotFound(f"there is no {kind} {field!r}")
        created_ms = await self.now_ms() if before is None else before.record.created_ms
        record = replace(record, created_ms=created_ms)
        await self._write(f"{kind}.{'create' if is_new else 'update'}", name, field, before, record)
        return record

    async def _amend(
        self, kind: str, name: str, field: str, record_type: type[RecordT], change: Callable[[RecordT], RecordT]
    ) -> RecordT:
        for _ in range(_MAX_TRIES):
            before = await self._existing(kind, name, field, record_type)
            after = change(before.record)
            if after == before.record:
                return after
            with suppress(Conflict):
                await self._write(f"{kind}.update", name, field, before, after)
                return after
        raise Conflict(f"{kind} {field!r} is changed by others all the time; try again")

    async def _delete(self, action: str, name: str, field: str, record_type: type[RecordT]) -> None:
        before = await self._existing(action.partition(".")[0], name, field, record_type)
        await self._write(action, name, field, before, None)

    async def _write(
        self, action: str, name: str, field: str, before: _Stored[RecordT] | None, after: RecordT | None
    ) -> None:
        audited: tuple[str, ...] = self._told(action, field, before.record if before else None, after)
        # What is new beneath a tenant that is being deleted would be there again with the next tenant of its name.
        needed = after.tenant_id if before is None and isinstance(after, ProjectRecord | KeyRecord) else ""
        args = (field, before.text if before else "", after.to_json() if after else "", needed, *audited)
        async with calling(self._redis):
            changed = await self._change(keys=(name, AUDIT, TENANTS), args=args)
        if not changed:
            raise Conflict(f"{action.partition('.')[0]} {field!r} was changed by somebody else; look at it again")

    def _told(self, action: str, field: str, before: RecordT | None, after: RecordT | None) -> tuple[str, ...]:
        """The fields of the audit's line."""
        who: tuple[str, ...] = ("actor", self._actor, "action", action, "subject", field)
        return (*who, "before", _audited(before), "after", _audited(after))

    async def _existing(self, kind: str, name: str, field: str, record_type: type[RecordT]) -> _Stored[RecordT]:
        found = await self._get(name, field, record_type)
        if found is None:
            raise NotFound(f"there is no {kind} {field!r}")
        return found

    async def _get(self, name: str, field: str, record_type: type[RecordT]) -> _Stored[RecordT] | None:
        async with calling(self._redis):
            found = await self._redis.hget(name, field)
        return None if found is None else _as_stored(found, record_type)

    async def _stored(self, name: str, kind: type[RecordT], tenant_id: str = "") -> dict[str, _Stored[RecordT]]:
        """By field, in order; of one tenant alone if it is named."""
        async with calling(self._redis):
            found = await self._redis.hgetall(name)
        every = {_text(field): _as_stored(found[field], kind) for field in sorted(found)}
        return {field: one for field, one in every.items() if tenant_id in ("", one.record.tenant_id)}


def _as_stored(found: bytes | str, kind: type[RecordT]) -> _Stored[RecordT]:
    text = _text(found)
    return _Stored(text, kind.from_json(text))


def _text(found: bytes | str) -> str:
    return found if isinstance(found, str) else found.decode()


def _audited(record: TenantRecord | ProjectRecord | KeyRecord | None) -> str:
    if record is None:
        return ""
    values: dict[str, Any] = record.public() if isinstance(record, KeyRecord) else asdict(record)
    return json.dumps(values, separators=(",", ":"), sort_keys=True)


def checked_grace(grace_s: float) -> float:
    """Raises ConfigurationError for what is no time."""
    if not 0 <= grace_s <= MAX_GRACE_S:
        raise ConfigurationError(f"grace must be from 0 to {MAX_GRACE_S} s, is {grace_s}", param="grace_s")
    return grace_s


def expiry_ms(now_ms: int, expires_in_s: float | None) -> int:
    """When a key ends that holds so long from now; None: never. Raises ConfigurationError for what is no such time."""
    if expires_in_s is None:
        return 0
    if not 0 < expires_in_s <= MAX_EXPIRY_S:
        raise ConfigurationError(
            f"expires_in_s must be above 0 and at most {MAX_EXPIRY_S}, is {expires_in_s}", param="expires_in_s"
        )
    return now_ms + int(expires_in_s * 1e3)


def _check_unreplaced(old: KeyRecord) -> None:
    if old.replaced_by:
        raise Conflict(
            f"key {old.key_id} is being rotated out already, by {old.replaced_by}: at most {MAX_ACTIVE} hold"
        )
