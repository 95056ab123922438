import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gemline.cluster.connection import connect
from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.keys import KEYS, ApiKeys, digest_of
from gemline.errors import ConfigurationError, Unavailable


async def test_a_new_key_is_its_tenants(redis: Redis) -> None:
    keys = ApiKeys(redis, None)
    key = await keys.add("acme")
    assert re.fullmatch(r"gk_[0-9a-f]{8}_[0-9a-f]{48}", key)
    assert await keys.tenant_of(key) == "acme"
    assert await ApiKeys(redis, None).tenant_of(key) == "acme"


async def test_redis_never_holds_the_key_itself(redis: Redis) -> None:
    key = await ApiKeys(redis, None).add("acme")
    stored = await redis.hgetall(KEYS)
    assert stored == {digest_of(key).encode(): b"acme"}


@pytest.mark.parametrize("key", ["", "gk_", "gk_00000000_" + "0" * 48, "\ud800", "x" * 100_000])
async def test_a_key_that_nobody_has_is_nobodys(redis: Redis, key: str) -> None:
    await ApiKeys(redis, None).add("acme")
    assert await ApiKeys(redis, None).tenant_of(key) is None


async def test_a_key_that_is_added_after_it_was_tried_holds_at_once(redis: Redis) -> None:
    keys = ApiKeys(redis, None, fresh_s=0)
    assert await keys.tenant_of("mine") is None
    await redis.hset(KEYS, digest_of("mine"), "acme")
    assert await keys.tenant_of("mine") == "acme"


async def test_a_key_that_is_taken_away_ends_with_the_cache(redis: Redis) -> None:
    cached, uncached = ApiKeys(redis, None), ApiKeys(redis, None, fresh_s=0)
    key = await cached.add("acme")
    assert await cached.tenant_of(key) == await uncached.tenant_of(key) == "acme"
    await redis.delete(KEYS)
    assert await cached.tenant_of(key) == "acme"
    assert await uncached.tenant_of(key) is None


async def test_while_redis_is_away_known_keys_hold_and_others_are_an_error(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    redis = connect(server.start())
    keys = ApiKeys(redis, None, fresh_s=0)
    key = await keys.add("acme")
    await keys.tenant_of(key)
    server.stop()
    assert await keys.tenant_of(key) == "acme"
    with pytest.raises(Unavailable):
        await keys.tenant_of("another")
    await redis.aclose()


async def test_trying_many_keys_costs_bounded_memory(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemline.cluster.keys._MAX_CACHED", 10)
    keys = ApiKeys(redis, None)
    for number in range(50):
        await keys.tenant_of(str(number))
    assert len(keys._cache) <= 10


async def test_a_file_alone_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nacme: sesame \nother-1:a:b\n")
    keys = ApiKeys(None, file)
    assert await keys.tenant_of("sesame") == "acme"
    assert await keys.tenant_of("a:b") == "other-1"
    assert await keys.tenant_of("# ours") is None


async def test_file_and_redis_are_both_asked(tmp_path: Path, redis: Redis) -> None:
    file = tmp_path / "keys"
    file.write_text("acme:sesame\n")
    keys = ApiKeys(redis, file)
    other = await keys.add("other")
    assert await keys.tenant_of("sesame") == "acme"
    assert await keys.tenant_of(other) == "other"


async def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("acme:sesame\n")
    keys = ApiKeys(None, file, fresh_s=0)
    assert await keys.tenant_of("sesame") == "acme"
    file.write_text("acme:another\n")
    assert await keys.tenant_of("sesame") is None
    assert await keys.tenant_of("another") == "acme"
    file.write_text("nonsense\n")
    assert await keys.tenant_of("another") == "acme"
    file.unlink()
    assert await keys.tenant_of("another") == "acme"


@pytest.mark.parametrize(
    "content", [b"acme\n", b"acme:\n", b":key\n", b"two words:key\n", b"\xff:key\n", b"a\xc3\xa9:k\n"]
)
async def test_a_broken_file_is_refused_and_its_keys_are_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"good:sesame\n" + content)
    with pytest.raises(ConfigurationError, match="keys_file") as caught:
        await ApiKeys(None, file).tenant_of("sesame")
    assert "sesame" not in str(caught.value)
    assert caught.value.param == "keys_file"


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keys_file"):
        await ApiKeys(None, tmp_path / "none").tenant_of("x")


async def test_without_redis_no_key_can_be_added(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="redis_url"):
        await ApiKeys(None, None).add("acme")


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "ä", "x" * 65, "a\n"])
async def test_a_tenant_name_that_could_be_misread_is_refused(redis: Redis, tenant: str) -> None:
    with pytest.raises(ConfigurationError, match="tenant"):
        await ApiKeys(redis, None).add(tenant)
