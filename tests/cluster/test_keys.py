"""What a key gives: keys in Redis and in a file, fresh, stale, expired, and while Redis is away."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.connection import connect
from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.keys import KEYS, ApiKeys, new_key
from gemline.cluster.limits import Limits
from gemline.errors import ConfigurationError, Unavailable


async def tenant_of(keys: ApiKeys, key: str) -> str | None:
    access = await keys.access_of(key)
    return None if access is None else access.tenant.tenant_id


@pytest.fixture
def store(redis: Redis) -> AccessStore:
    return AccessStore(redis, "test")


async def test_a_key_gives_its_tenant_its_project_and_all_their_limits(redis: Redis, store: AccessStore) -> None:
    await store.put_tenant(TenantRecord("acme", limits=Limits(requests_per_min=100), weight=2.0), is_new=True)
    await store.put_project(ProjectRecord("acme", "web", models=("a", "b")), is_new=True)
    wanted = KeyRecord("acme", "web", limits=Limits(concurrent_requests=3), models=("b", "c"))
    made = await store.create_key(wanted)
    access = await ApiKeys(redis, None).access_of(made.key)
    assert access is not None and access.project is not None and access.key is not None
    assert (access.tenant.weight, access.project.project_id, access.key) == (2.0, "web", made.record)
    assert [scope.name for scope in access.scopes] == ["t/acme", f"k/{made.record.key_id}"]
    assert [model for model in "abcd" if access.allows(model)] == ["b"]


@pytest.mark.parametrize("key", ["", "gk_", new_key()[1], "\ud800", "x" * 100_000], ids=range(5))
async def test_a_key_that_nobody_has_is_nobodys(redis: Redis, store: AccessStore, key: str) -> None:
    await store.create_key(KeyRecord("acme"))
    assert await ApiKeys(redis, None).access_of(key) is None


async def test_the_right_id_with_another_secret_is_nobodys(redis: Redis, store: AccessStore) -> None:
    made = await store.create_key(KeyRecord("acme"))
    wrong = made.key[:-1] + ("0" if made.key[-1] != "0" else "1")
    assert await ApiKeys(redis, None).access_of(wrong) is None


async def test_a_key_that_is_taken_away_ends_with_the_cache(redis: Redis, store: AccessStore) -> None:
    cached, uncached = ApiKeys(redis, None), ApiKeys(redis, None, fresh_s=0)
    made = await store.create_key(KeyRecord("acme"))
    assert await tenant_of(cached, made.key) == await tenant_of(uncached, made.key) == "acme"
    await store.revoke(made.record.key_id)
    assert await tenant_of(cached, made.key) == "acme"
    assert await tenant_of(uncached, made.key) is None


async def test_many_who_come_with_a_key_at_a_time_ask_redis_once(redis: Redis, store: AccessStore) -> None:
    made, keys = await store.create_key(KeyRecord("acme")), ApiKeys(redis, None)
    await tenant_of(ApiKeys(redis, None), made.key)  # the script is known from now on
    await redis.config_resetstat()
    leaving = asyncio.create_task(tenant_of(keys, made.key))
    staying = [asyncio.create_task(tenant_of(keys, made.key)) for _ in range(50)]
    await asyncio.sleep(0)
    leaving.cancel()
    assert await asyncio.gather(*staying) == ["acme"] * 50
    statistics = await redis.info("commandstats")
    assert statistics["cmdstat_evalsha"]["calls"] == 1


async def test_an_expired_key_is_refused_by_redis_clock_even_from_the_cache(redis: Redis, store: AccessStore) -> None:
    seconds, microseconds = await redis.time()
    made = await store.create_key(KeyRecord("acme", expires_ms=seconds * 1000 + microseconds // 1000 + 300))
    keys = ApiKeys(redis, None)
    assert await tenant_of(keys, made.key) == "acme"
    await asyncio.sleep(0.35)
    assert await tenant_of(keys, made.key) is None
    assert await tenant_of(ApiKeys(redis, None), made.key) is None


async def test_while_a_key_is_rotated_two_hold_and_after_the_grace_one(redis: Redis, store: AccessStore) -> None:
    old = await store.create_key(KeyRecord("acme", limits=Limits(requests_per_min=7)))
    new = await store.rotate(old.record.key_id, grace_s=0.3)
    assert new.record.limits == old.record.limits
    assert [await tenant_of(ApiKeys(redis, None), key) for key in (old.key, new.key)] == ["acme", "acme"]
    await asyncio.sleep(0.35)
    assert [await tenant_of(ApiKeys(redis, None), key) for key in (old.key, new.key)] == [None, "acme"]


async def test_while_redis_is_away_known_keys_hold_and_others_are_an_error(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    redis = connect(server.start())
    keys = ApiKeys(redis, None, fresh_s=0)
    key = (await AccessStore(redis, "test").create_key(KeyRecord("acme"))).key
    await keys.access_of(key)
    server.stop()
    assert await tenant_of(keys, key) == "acme"
    with pytest.raises(Unavailable):
        await keys.access_of(new_key()[1])
    assert await keys.access_of("no key of ours") is None
    await redis.aclose()


async def test_redis_never_holds_the_key_itself(redis: Redis, store: AccessStore) -> None:
    made = await store.create_key(KeyRecord("acme"))
    assert made.key.rpartition("_")[2] not in repr(await redis.hgetall(KEYS))


async def test_trying_many_keys_costs_bounded_memory(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemline.cluster.keys._MAX_CACHED", 10)
    keys = ApiKeys(redis, None)
    for _ in range(50):
        await keys.access_of(new_key()[1])
    assert len(keys._cache) <= 10


async def test_a_file_alone_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nacme: sesame \nother-1:a:b\n")
    keys = ApiKeys(None, file)
    assert await tenant_of(keys, "sesame") == "acme"
    assert await tenant_of(keys, "a:b") == "other-1"
    assert await tenant_of(keys, "# ours") is None


async def test_file_and_redis_are_both_asked(tmp_path: Path, redis: Redis) -> None:
    file = tmp_path / "keys"
    file.write_text("acme:sesame\n")
    keys = ApiKeys(redis, file)
    other = (await AccessStore(redis, "test").create_key(KeyRecord("other"))).key
    assert await tenant_of(keys, "sesame") == "acme"
    assert await tenant_of(keys, other) == "other"


async def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("acme:sesame\n")
    keys = ApiKeys(None, file, fresh_s=0)
    assert await tenant_of(keys, "sesame") == "acme"
    file.write_text("acme:another\n")
    assert await tenant_of(keys, "sesame") is None
    assert await tenant_of(keys, "another") == "acme"
    file.write_text("nonsense\n")
    assert await tenant_of(keys, "another") == "acme"
    file.unlink()
    assert await tenant_of(keys, "another") == "acme"


@pytest.mark.parametrize(
    "content", [b"acme\n", b"acme:\n", b":key\n", b"two words:key\n", b"\xff:key\n", b"a\xc3\xa9:k\n"]
)
async def test_a_broken_file_is_refused_and_its_keys_are_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"good:sesame\n" + content)
    with pytest.raises(ConfigurationError, match="keys_file") as caught:
        await ApiKeys(None, file).access_of("sesame")
    assert "sesame" not in str(caught.value)
    assert caught.value.param == "keys_file"


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keys_file"):
        await ApiKeys(None, tmp_path / "none").access_of("x")


async def test_a_tenant_in_redis_limits_its_keys_in_the_file(tmp_path: Path, redis: Redis, store: AccessStore) -> None:
    file = tmp_path / "keys"
    file.write_text("acme:sesame\n")
    assert (await ApiKeys(redis, file).access_of("sesame")) is not None
    await store.put_tenant(TenantRecord("acme", limits=Limits(requests_per_min=1)), is_new=True)
    access = await ApiKeys(redis, file).access_of("sesame")
    assert access is not None
    assert [scope.name for scope in access.scopes] == ["t/acme"]
