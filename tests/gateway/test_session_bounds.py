"""Whose sessions are, and what may be asked of them."""

import pytest
from support.in_process import MODEL, TENANT, InProcess
from support.session_talk import begin, say

from gemline.errors import (
    InvalidRequest,
    ModelNotFound,
    SessionNotFound,
    Unavailable,
)
from gemline.gateway.catalog import Catalog
from gemline.gateway.requests import Tenant
from gemline.gateway.sessions import Sessions
from gemline.telemetry import off

OTHER = Tenant("globex")


async def test_nobody_but_its_tenant_sees_forks_ends_or_talks_in_a_session(sessions: Sessions, session_id: str) -> None:
    await say(sessions, session_id)
    nobodys = "ses_" + "0" * 32
    for other in (session_id, nobodys):
        for call in (
            sessions.get(OTHER, other),
            sessions.delete(OTHER, other),
            sessions.fork(OTHER, other, None, None),
            begin(sessions, other, tenant=OTHER),
        ):
            with pytest.raises(SessionNotFound) as caught:
                await call
            assert caught.value.message == f"there is no session {other!r}"
    assert (await sessions.page(OTHER)).sessions == ()
    assert [session.record.session_id for session in (await sessions.page(TENANT)).sessions] == [session_id]
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 1


@pytest.mark.parametrize(
    ("ttl_s", "metadata", "param"),
    [
        (0, {}, "ttl_s"),
        (-5, {}, "ttl_s"),
        (7 * 24 * 3600 + 1, {}, "ttl_s"),
        (None, {str(i): "" for i in range(17)}, "metadata"),
        (None, {"": "x"}, "metadata"),
        (None, {"k" * 65: "x"}, "metadata"),
        (None, {"k": "x" * 513}, "metadata"),
        (None, {"k": "\ud800"}, "metadata"),
    ],
)
async def test_a_time_or_metadata_out_of_bounds_is_refused_by_name(
    sessions: Sessions, session_id: str, ttl_s: int | None, metadata: dict[str, str], param: str
) -> None:
    for call in (sessions.create(TENANT, MODEL, ttl_s, metadata), sessions.fork(TENANT, session_id, ttl_s, metadata)):
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert caught.value.param == param


async def test_the_bounds_themselves_are_taken(sessions: Sessions) -> None:
    metadata = {f"{i:064}": "字" * 512 for i in range(16)}
    made = await sessions.create(TENANT, MODEL, 7 * 24 * 3600, metadata)
    assert (made.record.metadata, made.record.ttl_s) == (metadata, 7 * 24 * 3600.0)
    assert (await sessions.create(TENANT, MODEL, 1, {})).record.ttl_s == 1
    assert (await sessions.create(TENANT, MODEL, None, {})).record.ttl_s == 3600


async def test_a_session_of_no_model_is_not_made(sessions: Sessions) -> None:
    with pytest.raises(ModelNotFound):
        await sessions.create(TENANT, "gpt-9", None, {})
    for limit in (0, 101):
        with pytest.raises(InvalidRequest, match="limit must be from 1 to 100"):
            await sessions.page(TENANT, limit)


async def test_a_session_of_another_tokenizer_cannot_go_on_but_is_still_there(
    platform: InProcess, sessions: Sessions
) -> None:
    made = await platform.store.create(TENANT.tenant_id, MODEL, "0" * 64, 60.0, {})
    with pytest.raises(InvalidRequest, match="had another tokenizer") as caught:
        await begin(sessions, made.session_id)
    assert caught.value.param == "session_id"
    assert (await sessions.get(TENANT, made.session_id)).record.num_turns == 0


async def test_a_gateway_without_a_store_keeps_no_sessions(platform: InProcess) -> None:
    gateway = platform.gateway
    none = Sessions(gateway, Catalog(gateway._view), gateway._view, None, off())
    for call in (
        none.create(TENANT, MODEL, None, {}),
        none.get(TENANT, "ses_"),
        none.page(TENANT),
        none.delete(TENANT, "ses_"),
        none.fork(TENANT, "ses_", None, None),
        begin(none, "ses_"),
    ):
        with pytest.raises(Unavailable, match="keeps no sessions"):
            await call
    await none.stop()
