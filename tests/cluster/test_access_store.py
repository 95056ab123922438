"""Tenants, projects and keys: made, changed, taken away, each time with a line in the audit and no secret in it."""

import json

import pytest
from redis.asyncio import Redis

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
from gemline.cluster.access_store import AccessStore
from gemline.cluster.limits import Limits
from gemline.errors import ConfigurationError, Conflict, NotFound


@pytest.fixture
def store(redis: Redis) -> AccessStore:
    return AccessStore(redis, "ada")


async def test_every_change_is_audited_with_what_was_and_what_is(store: AccessStore) -> None:
    tenant = await store.put_tenant(TenantRecord("acme", weight=2), is_new=True)
    changed = TenantRecord("acme", weight=3, limits=Limits(token_budget=5), created_ms=tenant.created_ms)
    assert await store.put_tenant(changed, is_new=False) == changed == await store.tenant("acme")
    made = await store.create_key(KeyRecord("acme", label="ci"))
    await store.revoke(made.record.key_id)
    lines = [line async for line in store.audit()]
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
    with pytest.raises(NotFound, match="project 'web'"):
        await store.create_key(KeyRecord("acme", "web"))
    with pytest.raises(NotFound, match="no key 'none'"):
        await store.revoke("none")


async def test_a_change_upon_an_older_state_is_refused(redis: Redis, store: AccessStore) -> None:
    old = await store.put_tenant(TenantRecord("acme"), is_new=True)
    await store.put_tenant(TenantRecord("acme", weight=2), is_new=False)
    with pytest.raises(Conflict, match="somebody else"):
        await store._write("tenant.update", "gemline:{access}:tenants", "acme", old, TenantRecord("acme", weight=3))


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
