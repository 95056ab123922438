"""Shares of releases: who gets which request, the same on every gateway, and what may not change as a share grows."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from support.eventually import eventually

from gemline.cluster.connection import connect
from gemline.cluster.records import ModelCard, Role, State, WorkerRecord
from gemline.cluster.releases import ReleaseShares
from gemline.cluster.workers import WorkerLease, WorkersView
from gemline.errors import ConfigurationError
from gemline.gateway.releases import Releases, Split
from gemline.gateway.routing import Life

KEYS = [f"req_{number}" for number in range(2000)]


def card(revision: str) -> ModelCard:
    return ModelCard("m", revision, 16, 17, (0,), "cd")


def worker(release: str, epoch: int = 1) -> WorkerRecord:
    return WorkerRecord(f"{release}-{epoch}", Role.DECODE, "127.0.0.1:1", card(f"of {release}"), epoch, release=release)


OLD, NEW = worker("old", 1), worker("new", 2)


def of_new(share: float) -> set[str]:
    split = Split([OLD, NEW], {"old": 1 - share, "new": share})
    return {key for key in KEYS if split.pick(key).release == "new"}


def test_a_share_is_about_what_was_asked_for() -> None:
    for share in (0.05, 0.2, 0.5):
        assert len(of_new(share)) / len(KEYS) == pytest.approx(share, abs=0.03)
    assert len(of_new(0.0)) == 0
    assert len(of_new(1.0)) == len(KEYS)


@given(st.floats(0, 1), st.floats(0, 1))
def test_as_a_share_grows_it_keeps_the_keys_it_had(one: float, other: float) -> None:
    small, large = sorted((one, other))
    few, many = (Split([OLD, NEW], {"old": 1 - share, "new": share}) for share in (small, large))
    for key in KEYS[:50]:
        assert few.pick(key).release == "old" or many.pick(key).release == "new"


def test_a_pick_says_what_the_release_serves() -> None:
    assert Split([OLD, NEW], {"new": 1.0}).pick("any") == ("new", card("of new"))


def test_without_shares_the_oldest_release_serves_alone() -> None:
    for ready in ([OLD, NEW], [NEW, OLD]):
        assert Split(ready, None).releases == {"old"}
    assert Split([NEW], None).releases == {"new"}


def test_where_nobody_who_should_serve_is_there_the_oldest_that_is_there_serves() -> None:
    assert Split([NEW], {"old": 1.0, "new": 0.0}).releases == {"new"}


def test_a_release_whose_workers_have_gone_leaves_its_share_to_the_others() -> None:
    split = Split([OLD], {"old": 0.5, "new": 0.5})
    assert {split.pick(key).release for key in KEYS} == {"old"}


def test_a_session_stays_with_its_owner_while_that_ones_release_has_any_share() -> None:
    owner = Life(OLD.worker_id, OLD.epoch)
    for key in KEYS[:50]:
        assert Split([OLD, NEW], {"old": 0.01, "new": 0.99}).pick(key, owner).release == "old"
        assert Split([OLD, NEW], {"old": 0.0, "new": 1.0}).pick(key, owner).release == "new"


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": -0.5, "b": 1.5}])
async def test_shares_that_cannot_be_are_refused(redis_url: str, shares: dict[str, float]) -> None:
    redis = connect(redis_url)
    with pytest.raises(ConfigurationError, match="all together are 1"):
        await ReleaseShares(redis).put("m", shares)
    await redis.aclose()


async def lease(redis: Redis, release: str) -> WorkerLease:
    made = WorkerLease(redis, worker(release))
    await made.register()
    return made


async def test_a_gateway_follows_a_change_and_keeps_it_while_redis_is_away(redis_url: str) -> None:
    redis, other = connect(redis_url), connect(redis_url)
    view = WorkersView(redis)
    releases = Releases(view, ReleaseShares(other), fresh_s=0.02)
    leases = [await lease(redis, release) for release in ("old", "new")]
    await view.start()
    view.on_change(releases.follow)
    await releases.start()
    try:
        pick = releases.pick("m", "any", None)
        assert pick is not None and pick.release == "old"
        assert not releases.takes_part(leases[1].record)
        await ReleaseShares(redis).put("m", {"old": 0.0, "new": 1.0})
        await eventually(lambda: releases.takes_part(leases[1].record))
        assert not releases.takes_part(leases[0].record)
        await other.connection_pool.disconnect()
        other.connection_pool.connection_kwargs["port"] = 1
        await asyncio.sleep(0.1)
        assert releases.takes_part(leases[1].record)
        await leases[1].drain()  # nobody else is there: better the old ones than none
        await eventually(lambda: releases.takes_part(leases[0].record))
        assert releases.pick("unknown", "any", None) is None
        assert leases[1].record.state is State.DRAINING
    finally:
        releases.stop()
        for each in leases:
            await each.withdraw()
        await view.stop()
        await redis.aclose()
        await other.aclose()
