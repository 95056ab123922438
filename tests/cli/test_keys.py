"""`gemline key create` with a real Redis."""

import re
from pathlib import Path

import redis.asyncio
from support.commands import gemline

from gemline.cluster.audit import AUDIT
from gemline.cluster.keys import KEYS, ApiKeys


async def test_a_new_key_is_printed_once_and_is_the_tenants(tmp_path: Path, redis_url: str) -> None:
    done = gemline("key", "create", "--tenant", "acme", "--redis-url", redis_url, home=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"gk_\w+\n", done.stdout)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        access = await ApiKeys(client, None).access_of(done.stdout.strip())
        stored = await client.hgetall(KEYS)
        audited = await client.xrange(AUDIT)
    assert access is not None
    assert access.tenant.tenant_id == "acme"
    secret = done.stdout.strip().rpartition("_")[2]
    assert secret not in repr((stored, audited))


def test_the_url_may_come_from_the_environment(tmp_path: Path, redis_url: str) -> None:
    assert gemline("key", "create", "--tenant", "a", home=tmp_path, GEMLINE_REDIS_URL=redis_url).returncode == 0


def test_a_redis_that_is_away_is_one_line_without_its_password(tmp_path: Path) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    done = gemline("key", "create", "--tenant", "acme", "--redis-url", url, home=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr


def test_a_tenant_that_is_no_name_is_refused(tmp_path: Path, redis_url: str) -> None:
    done = gemline("key", "create", "--tenant", "a b", "--redis-url", redis_url, home=tmp_path)
    assert done.returncode == 1
    assert "tenant 'a b'" in done.stderr
