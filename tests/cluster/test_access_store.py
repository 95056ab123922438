"""Tenants, projects and keys: made, changed, taken away, each time with a line in the audit and no secret in it."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.audit import Audit
from gemline.cluster.connection import connect
from gemline.cluster.keys import TENANTS
from gemline.cluster.limits import Limits
from gemline.errors import ConfigurationError, Conflict, NotFound


@pytest.fixture
def store(redis: Redis) -> AccessStore:
    return AccessStore(redis, "ada")


async def test_every_change_is_audited_with_what_was_and_what_is(redis: Redis, store: AccessStore) -> None:
    tenant = await store.put_tenant(TenantRecord("acme", weight=2), is_new=True)
    changed = TenantRecord("acme", weight=3, limits=Limits(token_budget=5), created_ms=tenant.created_ms)
    assert await store.put_tenant(changed, is_new=False) == changed == await store.tenant("acme")
    made = await store.create_key(KeyRecord("acme", label="ci"))
    await store.revoke(made.record.key_id)
    lines = await Audit(redis).newest()
    assert [(line.actor, line.action, line.subject) for line in lines] == [
        ("ada", "key.revoke", made.record.key_id),
        ("ada", "key.create", made.record.key_id),
        ("ada", "tenant.update", "acme"),
        ("ada", "tenant.create", "acme"),
    ]
    assert json.loads(lines[2].before)["weight"] == 2
    assert json.loads(lines[2].after)["limits"]["token_budget"] == 5
    assert json.loads(lines[1].after)["label"] == "ci"
    assert (lines[0].after, lines[3].before) == ("", "")
    assert made.record.digest not in repr(lines)


async def test_what_is_there_is_not_made_again_and_what_is_not_cannot_change(store: AccessStore) -> None:
    await store.put_tenant(TenantRecord("acme"), is_new=True)
    with pytest.raises(Conflict, match="'acme' is there already"):
        await store.put_tenant(TenantRecord("acme"), is_new=True)
    with pytest.raises(NotFound, match="no tenant 'other'"):
        await store.put_tenant(TenantRecord("other"), is_new=False)
    with pytest.raises(NotFound, match="project 'acme/web'"):
        await store.create_key(KeyRecord("acme", "web"))
    with pytest.raises(NotFound, match="no key 'none'"):
        await store.revoke("none")


async def test_of_changes_at_the_same_time_none_is_lost(redis_url: str, store: AccessStore) -> None:
    """Each from a connection of its own, each upon what it read."""
    await store.put_tenant(TenantRecord("acme", label="0"), is_new=True)
    clients = [connect(redis_url) for _ in range(8)]

    async def count_up(client: Redis) -> None:
        await AccessStore(client, "x").amend_tenant("acme", lambda it: replace(it, label=str(int(it.label) + 1)))

    await asyncio.gather(*map(count_up, clients))
    assert (await store.tenant("acme")).label == "8"
    assert len(await Audit(clients[0]).newest()) == 9
    for client in clients:
        await client.aclose()


async def test_what_changes_nothing_leaves_no_line(redis: Redis, store: AccessStore) -> None:
    await store.put_tenant(TenantRecord("acme"), is_new=True)
    await store.amend_tenant("acme", lambda it: it)
    assert len(await Audit(redis).newest()) == 1


async def test_a_record_as_another_release_wrote_it_can_be_changed(redis: Redis, store: AccessStore) -> None:
    """Neither one with more fields nor one with fewer."""
    for text in ('{"tenant_id": "acme", "colour": "blue"}', '{"tenant_id": "acme"}'):
        await redis.hset(TENANTS, "acme", text)
        assert (await store.amend_tenant("acme", lambda it: replace(it, weight=2.0))).weight == 2
        await store.delete_tenant("acme")


async def test_of_rotations_at_the_same_time_one_is_done_and_no_third_key_holds(
    redis_url: str, store: AccessStore
) -> None:
    old = await store.create_key(KeyRecord("acme"))
    clients = [connect(redis_url) for _ in range(4)]
    done = await asyncio.gather(
        *(AccessStore(client, "x").rotate(old.record.key_id) for client in clients), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["Conflict"] * 3 + ["NewKey"]
    assert len(await store.keys("acme")) == 2
    for client in clients:
        await client.aclose()


async def test_the_audit_is_read_in_pages(redis: Redis) -> None:
    audit = Audit(redis)
    for number in range(5):
        await audit.add("ada", "prefix.put", str(number))
    first = await audit.newest(2)
    assert [line.subject for line in first] == ["4", "3"]
    assert [line.subject for line in await audit.newest(before=first[-1].line_id)] == ["2", "1", "0"]
    with pytest.raises(ConfigurationError, match="before 'x' is not an id"):
        await audit.newest(before="x")
    with pytest.raises(ConfigurationError, match="limit must be from 1 to 1000, is 0"):
        await audit.newest(0)


async def test_a_tenant_goes_with_its_projects_and_keys(store: AccessStore) -> None:
    await store.put_tenant(TenantRecord("acme"), is_new=True)
    await store.put_project(ProjectRecord("acme", "web"), is_new=True)
    made = [await store.create_key(KeyRecord("acme", project)) for project in ("", "web")]
    other = await store.create_key(KeyRecord("acme.b"))
    await store.delete_tenant("acme")
    assert [tenant.tenant_id for tenant in await store.tenants()] == ["acme.b"]
    assert (await store.projects("acme"), await store.keys("acme")) == ((), ())
    assert await store.keys("acme.b") == (other.record,)
    for one in made:
        with pytest.raises(NotFound):
            await store.key(one.record.key_id)


async def test_a_tenant_goes_whole_or_not_at_all(
    redis: Redis, store: AccessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is made while the tenant's records are read is seen, and goes too."""
    await store.put_tenant(TenantRecord("acme"), is_new=True)
    await store.put_project(ProjectRecord("acme", "web"), is_new=True)
    await store.create_key(KeyRecord("acme", "web"))
    num_lines = len(await Audit(redis).newest())
    delete = store._delete_all
    seen: list[int] = []

    async def late(**given: Any) -> Any:
        if not seen:
            await AccessStore(redis, "other").create_key(KeyRecord("acme"))
        seen.append(await delete(**given))
        assert len(await store.keys("acme")) == (0 if seen[-1] else 2)
        assert len(await store.projects("acme")) == (0 if seen[-1] else 1)
        return seen[-1]

    monkeypatch.setattr(store, "_delete_all", late)
    await store.delete_tenant("acme")
    assert seen == [0, 1]
    lines = (await Audit(redis).newest())[: -num_lines - 1]
    assert [line.action for line in lines] == ["tenant.delete", "project.delete", "key.revoke", "key.revoke"]
    assert all(line.before and not line.after for line in lines)
    with pytest.raises(NotFound):
        await store.delete_tenant("acme")


async def test_what_is_made_beneath_a_tenant_that_goes_meanwhile_is_not_there_for_the_next_of_its_name(
    redis: Redis, store: AccessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_tenant(TenantRecord("acme"), is_new=True)
    change = store._change

    async def after_the_end(**given: Any) -> Any:
        await AccessStore(redis, "other").delete_tenant("acme")
        return await change(**given)

    for making in (
        lambda: store.create_key(KeyRecord("acme")),
        lambda: store.put_project(ProjectRecord("acme", "web"), is_new=True),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(store, "_change", after_the_end)
            with pytest.raises(Conflict):
                await making()
        await store.put_tenant(TenantRecord("acme"), is_new=True)
        assert (await store.projects("acme"), await store.keys("acme")) == ((), ())


async def test_a_key_is_rotated_once_at_a_time_and_never_lives_longer_for_it(store: AccessStore) -> None:
    old = await store.create_key(KeyRecord("acme", label="ci"))
    new = await store.rotate(old.record.key_id)
    with pytest.raises(Conflict, match=new.record.key_id):
        await store.rotate(old.record.key_id)
    short = await store.create_key(KeyRecord("acme", expires_ms=old.record.created_ms + 1000))
    await store.rotate(short.record.key_id)
    assert (await store.key(short.record.key_id)).expires_ms == old.record.created_ms + 1000


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "ä", "x" * 65, "a\n"])
async def test_a_name_that_could_be_misread_is_refused(store: AccessStore, name: str) -> None:
    with pytest.raises(ConfigurationError, match="tenant"):
        await store.create_key(KeyRecord(name))
    with pytest.raises(ConfigurationError, match="project"):
        ProjectRecord("acme", name)


def test_records_of_a_later_release_can_be_read() -> None:
    record = TenantRecord("acme", limits=Limits(requests_per_min=5), models=("a",), weight=2.5)
    later = json.loads(record.to_json()) | {"colour": "blue"}
    assert TenantRecord.from_json(json.dumps(later)) == record
