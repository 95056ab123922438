"""Whose sessions are: how they are named, found and listed."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from gemline.cluster.connection import connect
from gemline.cluster.session_records import Residence, SessionRecord, Turn
from gemline.cluster.sessions import SessionStore, new_lease
from gemline.errors import InvalidRequest, SessionNotFound

ACME, GLOBEX = "acme", "globex"
HOME = Residence("decode-1", 7, "ab" * 32, 16, 4096)
UNKNOWN = "ses_" + "0" * 32


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis)


async def make(store: SessionStore, tenant: str = ACME, ttl_s: float = 60.0) -> SessionRecord:
    return await store.create(tenant, "gemma", "cd", ttl_s, {"topic": "birds"})


async def say(store: SessionStore, session_id: str, token_ids: list[int], tenant: str = ACME) -> SessionRecord:
    """One whole turn."""
    return await store.commit(await store.begin_turn(tenant, session_id), token_ids, HOME)


async def ids_of(store: SessionStore, session_id: str, tenant: str = ACME) -> list[int]:
    turn = await store.begin_turn(tenant, session_id)
    await store.release(turn)
    return list(turn.token_ids)


@pytest.mark.parametrize(
    "session_id", [UNKNOWN, "", "ses_", "ses_" + "G" * 32, "ses_" + "0" * 33, "x" * 10_000, "ses_{}*?", "\udc00"]
)
async def test_an_id_that_is_nobodys_is_not_found(store: SessionStore, session_id: str) -> None:
    for call in (store.get, store.delete, store.fork, store.begin_turn):
        with pytest.raises(SessionNotFound, match="there is no session"):
            await call(ACME, session_id)


async def test_another_tenants_session_is_not_found_in_the_same_words(store: SessionStore) -> None:
    made = await make(store)
    await say(store, made.session_id, [1])
    for call in (store.get, store.delete, store.fork, store.begin_turn):
        with pytest.raises(SessionNotFound) as theirs:
            await call(GLOBEX, made.session_id)
        with pytest.raises(SessionNotFound) as nobodys:
            await call(GLOBEX, UNKNOWN)
        assert theirs.value.message == nobodys.value.message.replace(UNKNOWN, made.session_id)
    stolen: Any = Turn(GLOBEX, made, [], new_lease(), b"")
    assert not await store.renew(stolen)
    with pytest.raises(SessionNotFound):
        await store.commit(stolen, [9], HOME)
    assert (await store.page(GLOBEX, 10)).records == ()
    assert await ids_of(store, made.session_id) == [1]


async def test_the_list_is_the_tenants_own_the_newest_first_in_pages(store: SessionStore) -> None:
    made = [await make(store) for _ in range(7)]
    await make(store, GLOBEX)
    await say(store, made[0].session_id, [1])
    seen, after, sizes = [], "", []
    while True:
        page = await store.page(ACME, 3, after)
        seen += [record.session_id for record in page.records]
        sizes.append(len(page.records))
        if not (after := page.after):
            break
        await store.delete(ACME, page.records[-1].session_id)  # it does not lose our place
    assert seen == [record.session_id for record in reversed(made)]
    assert sizes == [3, 3, 1]


async def test_sessions_that_have_ended_leave_the_list(store: SessionStore, redis: Redis) -> None:
    short, long = await make(store, ttl_s=0.1), await make(store)
    await asyncio.sleep(0.2)
    assert [record.session_id for record in (await store.page(ACME, 10)).records] == [long.session_id]
    index = store._names.index(ACME)
    assert await redis.zscore(index.made, short.session_id) is None
    assert await redis.zscore(index.ends, short.session_id) is None


async def test_a_session_that_redis_lost_is_left_out_of_the_list(store: SessionStore, redis: Redis) -> None:
    made = await make(store)
    await redis.delete(store._names.keys(ACME, made.session_id).meta)
    assert (await store.page(ACME, 10)).records == ()


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "(1", "9" * 17, "١"])
async def test_a_place_in_the_list_that_no_page_gave_is_refused(store: SessionStore, after: str) -> None:
    with pytest.raises(InvalidRequest, match="which no list gave") as caught:
        await store.page(ACME, 10, after)
    assert caught.value.param == "after"


async def test_keys_tell_neither_tenant_nor_session_and_depend_on_the_secret(redis: Redis) -> None:
    names: list[set[bytes]] = []
    for secret in (b"", b"one", b"two"):
        await redis.flushall()
        store = SessionStore(redis, secret=secret)
        made = await make(store, "acme-corporation")
        await say(store, made.session_id, [1], "acme-corporation")
        names.append({key if isinstance(key, bytes) else key.encode() for key in await redis.keys("*")})
        assert len(names[-1]) == 4
        assert not any(b"acme" in name or made.session_id[4:].encode() in name for name in names[-1])
        assert await store.get("acme-corporation", made.session_id)
        with pytest.raises(SessionNotFound):
            await SessionStore(redis, secret=b"other").get("acme-corporation", made.session_id)
    assert len(set.union(*names)) == 12


async def test_a_session_and_its_forks_lie_in_one_slot_of_a_cluster(store: SessionStore) -> None:
    made = await make(store)
    fork = await store.fork(ACME, made.session_id)
    keys = [*store._names.keys(ACME, made.session_id)[:2], *store._names.keys(ACME, fork.session_id)[:2]]
    assert len({key.partition("}")[0] for key in keys}) == 1
    assert len(set(keys)) == 4


@pytest.mark.parametrize("first", [("ab", "c"), ("a", "bc")])
def test_no_tenant_can_spell_its_way_to_anothers_keys(first: tuple[str, str], redis_url: str) -> None:
    names = SessionStore(connect(redis_url))._names
    others = [("abc", ""), ("ab", "c"), ("a", "bc")]
    others.remove(first)
    assert all(names._digest("session", *first) != names._digest("session", *other) for other in others)
