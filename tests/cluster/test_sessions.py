"""Sessions in a real Redis: turns, leases, forks, ends, and whose they are."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from gemline.cluster.connection import connect
from gemline.cluster.session_records import Residence, SessionRecord, Turn
from gemline.cluster.sessions import SessionStore, new_lease
from gemline.errors import Conflict, SessionNotFound, Unavailable

ACME, GLOBEX = "acme", "globex"
HOME = Residence("decode-1", 7, "ab" * 32, 16, 4096)
UNKNOWN = "ses_" + "0" * 32


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis)


@pytest.fixture
async def another(redis_url: str) -> AsyncIterator[SessionStore]:
    """The store of another gateway."""
    redis = connect(redis_url)
    yield SessionStore(redis)
    await redis.aclose()


async def make(store: SessionStore, tenant: str = ACME, ttl_s: float = 60.0) -> SessionRecord:
    return await store.create(tenant, "gemma", "cd", ttl_s, {"topic": "birds"})


async def say(store: SessionStore, session_id: str, token_ids: list[int], tenant: str = ACME) -> SessionRecord:
    """One whole turn."""
    return await store.commit(await store.begin_turn(tenant, session_id), token_ids, HOME)


async def ids_of(store: SessionStore, session_id: str, tenant: str = ACME) -> list[int]:
    turn = await store.begin_turn(tenant, session_id)
    await store.release(turn)
    return list(turn.token_ids)


async def test_a_new_session_is_empty_and_is_found_by_its_tenant(store: SessionStore) -> None:
    made = await make(store)
    assert (made.model_id, made.tokenizer_sha256, made.ttl_s) == ("gemma", "cd", 60.0)
    assert (made.num_turns, made.num_tokens, made.residence, made.metadata) == (0, 0, Residence(), {"topic": "birds"})
    assert made.updated_us == made.made_us
    assert made.ends_s == pytest.approx(made.made_us / 1e6 + 60, abs=0.01)
    assert await store.get(ACME, made.session_id) == made
    assert await ids_of(store, made.session_id) == []


async def test_turns_add_up_and_the_last_one_says_where_the_session_is(store: SessionStore) -> None:
    made = await make(store)
    await say(store, made.session_id, [2, 106, 70_000])
    saved = await say(store, made.session_id, [2**32 - 1, 107])
    assert (saved.num_turns, saved.num_tokens, saved.residence) == (2, 5, HOME)
    assert saved.updated_us > saved.made_us == made.made_us
    assert await store.get(ACME, made.session_id) == saved
    assert await ids_of(store, made.session_id) == [2, 106, 70_000, 2**32 - 1, 107]


async def test_of_fifty_turns_that_begin_at_once_one_gets_the_session(
    store: SessionStore, another: SessionStore
) -> None:
    made = await make(store)
    for round_ in range(3):
        begun = [(store, another)[i % 2].begin_turn(ACME, made.session_id) for i in range(50)]
        outcomes = await asyncio.gather(*begun, return_exceptions=True)
        (turn,) = [outcome for outcome in outcomes if isinstance(outcome, Turn)]
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
        assert len(refusals) == 49
        assert "is answering another turn" in refusals[0].message
        saved = await store.commit(turn, [round_], HOME)
        assert saved.num_turns == round_ + 1
    assert await ids_of(store, made.session_id) == [0, 1, 2]


async def test_a_turn_that_is_released_has_changed_nothing(store: SessionStore) -> None:
    made = await make(store)
    before = await say(store, made.session_id, [5])
    turn = await store.begin_turn(ACME, made.session_id)
    await store.release(turn)
    after = await store.get(ACME, made.session_id)
    assert (after.num_turns, after.num_tokens, after.updated_us) == (1, 1, before.updated_us)
    with pytest.raises(Conflict, match="was given to another turn"):
        await store.commit(turn, [6], HOME)
    assert await ids_of(store, made.session_id) == [5]


async def test_a_commit_or_a_beginning_that_is_sent_twice_counts_once(store: SessionStore) -> None:
    made, lease = await make(store), new_lease()
    first = await store.begin_turn(ACME, made.session_id, lease)
    assert (await store.begin_turn(ACME, made.session_id, lease)).lease == first.lease
    for _ in range(3):
        saved = await store.commit(first, [1, 2], HOME)
        assert (saved.num_turns, saved.num_tokens) == (1, 2)


async def test_a_turn_whose_gateway_died_holds_the_session_until_its_lease_ends(redis: Redis) -> None:
    store = SessionStore(redis, lease_s=0.2)
    made = await make(store)
    dead = await store.begin_turn(ACME, made.session_id)
    with pytest.raises(Conflict):
        await store.begin_turn(ACME, made.session_id)
    await asyncio.sleep(0.25)
    living = await store.begin_turn(ACME, made.session_id)
    assert not await store.renew(dead)
    with pytest.raises(Conflict):
        await store.commit(dead, [1], HOME)
    await store.release(dead)
    assert (await store.commit(living, [2], HOME)).num_tokens == 1


async def test_a_lease_that_ran_out_still_counts_while_nobody_else_took_it(redis: Redis) -> None:
    store = SessionStore(redis, lease_s=0.05)
    made = await make(store)
    turn = await store.begin_turn(ACME, made.session_id)
    await asyncio.sleep(0.1)
    assert await store.renew(turn)
    await asyncio.sleep(0.1)
    assert (await store.commit(turn, [1], HOME)).num_turns == 1


async def test_a_session_ends_its_ttl_after_its_last_turn(store: SessionStore) -> None:
    made = await make(store, ttl_s=0.4)
    await asyncio.sleep(0.25)
    await say(SessionStore(store._redis, lease_s=0.1), made.session_id, [1])
    await asyncio.sleep(0.25)
    assert (await store.get(ACME, made.session_id)).num_turns == 1
    await asyncio.sleep(0.25)
    with pytest.raises(SessionNotFound):
        await store.get(ACME, made.session_id)
    with pytest.raises(SessionNotFound):
        await store.begin_turn(ACME, made.session_id)


async def test_a_session_does_not_end_under_a_running_turn(redis: Redis) -> None:
    store = SessionStore(redis, lease_s=0.4)
    made = await make(store, ttl_s=0.1)
    turn = await store.begin_turn(ACME, made.session_id)
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert await store.renew(turn)
    saved = await store.commit(turn, [1], HOME)
    assert saved.ends_s == pytest.approx(saved.updated_us / 1e6 + 0.1, abs=0.01)


async def test_nothing_of_a_session_is_left_in_redis_after_its_end(store: SessionStore, redis: Redis) -> None:
    made = await make(store, ttl_s=0.1)
    await say(SessionStore(redis, lease_s=0.1), made.session_id, [1])
    await asyncio.sleep(0.2)
    assert (await store.page(ACME, 10)).records == ()
    assert await redis.keys("*") == []


async def test_a_fork_has_the_same_turns_and_goes_its_own_way(store: SessionStore) -> None:
    made = await make(store)
    await say(store, made.session_id, [1, 2])
    running = await store.begin_turn(ACME, made.session_id)
    fork = await store.fork(ACME, made.session_id)
    assert fork.session_id != made.session_id
    assert (fork.num_turns, fork.num_tokens, fork.residence, fork.metadata) == (1, 2, HOME, {"topic": "birds"})
    assert (fork.ttl_s, fork.made_us > made.made_us) == (60.0, True)
    await store.commit(running, [3], HOME)
    await say(store, fork.session_id, [4])
    await store.delete(ACME, made.session_id)
    assert await ids_of(store, fork.session_id) == [1, 2, 4]


async def test_a_fork_may_have_its_own_ttl_and_metadata_and_be_forked_again(store: SessionStore) -> None:
    made = await make(store)
    fork = await store.fork(ACME, made.session_id, 5.0, {"a": "b"})
    assert (fork.ttl_s, fork.metadata) == (5.0, {"a": "b"})
    assert fork.ends_s == pytest.approx(fork.made_us / 1e6 + 5, abs=0.01)
    again = await store.fork(ACME, fork.session_id)
    assert (again.ttl_s, again.metadata) == (5.0, {"a": "b"})
    assert len({made.session_id, fork.session_id, again.session_id}) == 3


async def test_a_deleted_session_is_gone_and_so_is_its_running_turn(store: SessionStore, redis: Redis) -> None:
    made = await make(store)
    turn = await store.begin_turn(ACME, made.session_id)
    await store.delete(ACME, made.session_id)
    for call in (store.get, store.delete, store.fork, store.begin_turn):
        with pytest.raises(SessionNotFound):
            await call(ACME, made.session_id)
    with pytest.raises(SessionNotFound):
        await store.commit(turn, [1], HOME)
    await store.release(turn)
    assert await redis.keys("*") == []


async def test_a_session_whose_token_ids_redis_lost_is_gone(store: SessionStore, redis: Redis) -> None:
    made = await make(store)
    await say(store, made.session_id, [1])
    turn = await store.begin_turn(ACME, made.session_id)
    await redis.delete(store._names.keys(ACME, made.session_id).ids)
    with pytest.raises(SessionNotFound):
        await store.commit(turn, [2], HOME)
    for call in (store.fork, store.begin_turn):
        with pytest.raises(SessionNotFound):
            await call(ACME, made.session_id)


async def test_while_redis_is_away_every_call_says_so() -> None:
    redis = connect("redis://127.0.0.1:1")
    store = SessionStore(redis)
    made = SessionRecord(UNKNOWN, "gemma", "cd", 60.0, 0, 0, 0.0)
    turn = Turn(ACME, made, [], new_lease(), b"")
    for call in (
        make(store),
        store.get(ACME, UNKNOWN),
        store.page(ACME, 10),
        store.delete(ACME, UNKNOWN),
        store.fork(ACME, UNKNOWN),
        store.begin_turn(ACME, UNKNOWN),
        store.renew(turn),
        store.commit(turn, [1], HOME),
        store.release(turn),
    ):
        with pytest.raises(Unavailable):
            await call
    await redis.aclose()
