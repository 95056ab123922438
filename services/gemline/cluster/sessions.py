"""Sessions in Redis: who may go on with which conversation, and its token ids. Never on a token's path."""

import json
import secrets
from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from gemline.cluster import session_scripts as scripts
from gemline.cluster.session_index import SessionIndex
from gemline.cluster.session_names import SessionKeys, SessionNames, new_fork_id, new_session_id, no_session
from gemline.cluster.session_records import Residence, SessionPage, SessionRecord, Turn
from gemline.cluster.session_redis import reaching
from gemline.cluster.session_vault import Vault
from gemline.errors import Conflict, InternalError

LEASE_S = 30.0  # for so long a gateway that died keeps its session's next turn waiting
MAX_TTL_S = 7 * 24 * 3600.0

_TAIL_BYTES = 16


class SessionStore:
    """All sessions of all tenants. Every method raises Unavailable when Redis does not answer in time."""

    def __init__(
        self, redis: Redis, *, secret: bytes = b"", vault: Vault | None = None, lease_s: float = LEASE_S
    ) -> None:
        """`secret` goes into every key's name; `vault` encrypts the token ids."""
        self._redis = redis
        self._names = SessionNames(secret)
        self._vault = vault or Vault()
        self._index = SessionIndex(redis, self._names, MAX_TTL_S)
        self.lease_s = lease_s
        self._create = redis.register_script(scripts.CREATE)
        self._fork = redis.register_script(scripts.FORK)
        self._begin = redis.register_script(scripts.BEGIN)
        self._renew = redis.register_script(scripts.RENEW)
        self._commit = redis.register_script(scripts.COMMIT)
        self._release = redis.register_script(scripts.RELEASE)

    async def create(
        self, tenant_id: str, model_id: str, tokenizer_sha256: str, ttl_s: float, metadata: Mapping[str, str]
    ) -> SessionRecord:
        """A new, empty session."""
        session_id = new_session_id()
        fields = {"model_id": model_id, "tokenizer_sha256": tokenizer_sha256, "metadata": json.dumps(dict(metadata))}
        keys = self._names.keys(tenant_id, session_id)
        async with reaching(self._redis):
            made = await self._create(keys=keys[:2], args=(_ms(ttl_s), *_flat(fields)))
        record = SessionRecord.from_fields(session_id, _fields(made))
        await self._index.add(tenant_id, record)
        return record

    async def get(self, tenant_id: str, session_id: str) -> SessionRecord:
        """One of the tenant's sessions; raises SessionNotFound."""
        keys = self._names.keys(tenant_id, session_id)
        async with reaching(self._redis):
            found = await self._redis.hgetall(keys.meta)
        if not found:
            raise no_session(session_id)
        return SessionRecord.from_fields(session_id, _texts(found))

    async def page(self, tenant_id: str, limit: int, after: str = "") -> SessionPage:
        """The tenant's sessions, a page at a time: those that come after `after`, a page's own."""
        listed = await self._index.page(tenant_id, limit, after)
        if not listed.session_ids:
            return SessionPage((), "")
        async with reaching(self._redis), self._redis.pipeline(transaction=False) as calls:
            for session_id in listed.session_ids:
                calls.hgetall(self._names.keys(tenant_id, session_id).meta)
            found = await calls.execute()
        named = zip(listed.session_ids, found, strict=True)
        records = tuple(SessionRecord.from_fields(name, _texts(fields)) for name, fields in named if fields)
        return SessionPage(records, listed.after)

    async def delete(self, tenant_id: str, session_id: str) -> None:
        """Ends a session, its running turn too; raises SessionNotFound."""
        keys = self._names.keys(tenant_id, session_id)
        async with reaching(self._redis):
            num_deleted = await self._redis.delete(keys.meta, keys.ids)
        await self._index.remove(tenant_id, session_id)
        if not num_deleted:
            raise no_session(session_id)

    async def fork(
        self, tenant_id: str, session_id: str, ttl_s: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> SessionRecord:
        """A new session with the turns that the other one has now, copied inside Redis; raises SessionNotFound."""
        keys, fork_id = self._names.keys(tenant_id, session_id), new_fork_id(session_id)
        fork_keys = self._names.keys(tenant_id, fork_id)
        changed = {} if metadata is None else {"metadata": json.dumps(dict(metadata))}
        args = ("" if ttl_s is None else _ms(ttl_s), *_flat(changed))
        async with reaching(self._redis):
            made = await self._fork(keys=(*keys[:2], *fork_keys[:2]), args=args)
        if not made:
            raise no_session(session_id)
        record = SessionRecord.from_fields(fork_id, _fields(made))
        await self._index.add(tenant_id, record)
        return record

    async def begin_turn(self, tenant_id: str, session_id: str, lease: str | None = None) -> Turn:
        """Takes the session for one turn. Whoever gets it commits or releases it, and renews it meanwhile.

        Raises SessionNotFound; Conflict while another turn has it; Unavailable when its token ids are encrypted with
        another key. `lease` names the turn; with the same name it may be begun again.
        """
        keys, lease = self._names.keys(tenant_id, session_id), lease or new_lease()
        async with reaching(self._redis):
            outcome, *rest = await self._begin(keys=keys[:2], args=(lease, _ms(self.lease_s)))
        if outcome == b"busy":
            raise Conflict(f"session {session_id} is answering another turn; wait for its end")
        if outcome == b"gone":
            raise no_session(session_id)
        fields, data = rest
        try:
            return self._turn(tenant_id, SessionRecord.from_fields(session_id, _fields(fields)), lease, data, keys)
        except Exception:
            await self._give_back(keys, lease)
            raise

    async def renew(self, turn: Turn) -> bool:
        """Keeps the session for the turn for lease_s more; False when it is the turn's no longer."""
        keys = self._names.keys(turn.tenant_id, turn.record.session_id)
        async with reaching(self._redis):
            return bool(await self._renew(keys=keys[:2], args=(turn.lease, _ms(self.lease_s))))

    async def commit(self, turn: Turn, token_ids: Sequence[int], residence: Residence) -> SessionRecord:
        """Adds the turn, question and answer, to the session and gives the session back. May be tried again.

        Raises SessionNotFound when it is gone, Conflict when another turn took it meanwhile.
        """
        record = turn.record
        keys = self._names.keys(turn.tenant_id, record.session_id)
        segment = self._vault.pack(token_ids, keys.family, turn.tail, record.num_tokens)
        fields = residence.to_fields() | {"num_tokens": str(record.num_tokens + len(token_ids))}
        async with reaching(self._redis):
            outcome, *rest = await self._commit(keys=keys[:2], args=(turn.lease, segment, *_flat(fields)))
        if outcome == b"gone":
            raise no_session(record.session_id)
        if outcome == b"taken":
            raise Conflict(f"session {record.session_id} was given to another turn; this one was not added to it")
        saved = SessionRecord.from_fields(record.session_id, _fields(rest[0]))
        await self._index.touch(turn.tenant_id, saved)
        return saved

    async def release(self, turn: Turn) -> None:
        """Gives the session back as it was before the turn. Harmless when the turn does not have it."""
        await self._give_back(self._names.keys(turn.tenant_id, turn.record.session_id), turn.lease)

    async def release_lease(self, tenant_id: str, session_id: str, lease: str) -> None:
        """The same for a turn of which it is not known whether it was begun."""
        await self._give_back(self._names.keys(tenant_id, session_id), lease)

    async def _give_back(self, keys: SessionKeys, lease: str) -> None:
        async with reaching(self._redis):
            await self._release(keys=keys[:2], args=(lease,))

    def _turn(self, tenant_id: str, record: SessionRecord, lease: str, data: bytes, keys: SessionKeys) -> Turn:
        ids = self._vault.unpack(data, keys.family)
        if len(ids) != record.num_tokens:
            raise InternalError("the session's transcript is damaged and cannot be read; nothing was changed")
        return Turn(tenant_id, record, ids, lease, data[-_TAIL_BYTES:])


def new_lease() -> str:
    """A name for one turn."""
    return secrets.token_hex(12)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part for pair in fields.items() for part in pair)


def _fields(flat: Sequence[bytes | str]) -> dict[str, str]:
    """Of HGETALL inside a script: fields and values in turn."""
    return _texts(dict(zip(flat[::2], flat[1::2], strict=True)))


def _texts(found: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
