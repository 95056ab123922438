"""Redis is away, slow or empty while sessions are in use: what runs goes on, and what cannot be kept is told."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as sync_redis
from support.in_process import MODEL, TENANT, InProcess
from support.session_talk import begin, said, say

from gemline.cluster.connection import connect
from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.sessions import SessionStore
from gemline.errors import Conflict, SessionNotFound, TurnNotSaved, Unavailable
from gemline.gateway.sessions import Sessions
from gemline.telemetry import off


@dataclass(frozen=True)
class Apart:
    """Sessions whose Redis is not the workers': a test may freeze and empty it."""

    sessions: Sessions
    server: EmbeddedRedis
    url: str

    def freeze(self) -> None:
        assert self.server.pid
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.server.pid
        os.kill(self.server.pid, signal.SIGCONT)

    def empty(self) -> None:
        with sync_redis.Redis.from_url(self.url) as client:
            client.flushall()
            client.script_flush()

    async def create(self) -> str:
        return (await self.sessions.create(TENANT, MODEL, None, {})).record.session_id

    async def num_turns(self, session_id: str) -> int:
        return (await self.sessions.get(TENANT, session_id)).record.num_turns


@pytest.fixture
async def apart(platform: InProcess, tmp_path: Path) -> AsyncIterator[Apart]:
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    client, gateway = connect(url), platform.gateway
    store = SessionStore(client, lease_s=2.0)
    sessions = Sessions(gateway, gateway._catalog, gateway._view, store, off(), insist_s=4.0)
    running = Apart(sessions, server, url)
    try:
        yield running
    finally:
        running.thaw()
        await sessions.stop()
        await client.aclose()
        server.stop()


async def test_while_redis_is_away_every_call_is_unavailable_and_names_nothing_of_the_inside(apart: Apart) -> None:
    session_id = await apart.create()
    apart.freeze()
    for call in (
        apart.sessions.create(TENANT, MODEL, None, {}),
        apart.sessions.get(TENANT, session_id),
        apart.sessions.page(TENANT),
        apart.sessions.delete(TENANT, session_id),
        apart.sessions.fork(TENANT, session_id, None, None),
        begin(apart.sessions, session_id),
    ):
        with pytest.raises(Unavailable, match=r"^sessions cannot be reached now; try again$"):
            await call
    apart.thaw()


async def test_an_answer_streams_on_while_redis_is_away_and_is_kept_when_it_is_back(apart: Apart) -> None:
    session_id = await apart.create()
    async with await begin(apart.sessions, session_id, max_tokens=20, ignore_eos=True) as answer:
        apart.freeze()
        texts = [(await anext(answer)).text for _ in range(3)]
        asyncio.get_running_loop().call_later(1.5, apart.thaw)
        last = await said(answer)
    assert all(texts)
    assert last.usage.completion_tokens == 20
    assert await apart.num_turns(session_id) == 1


async def test_an_answer_that_cannot_be_kept_ends_with_an_error_after_its_text(apart: Apart) -> None:
    session_id = await apart.create()
    answer = await begin(apart.sessions, session_id, max_tokens=5, ignore_eos=True)
    apart.freeze()
    pieces = []
    with pytest.raises(TurnNotSaved, match=f"session {session_id} could not be reached") as caught:
        async for piece in answer:
            pieces.append(piece)
    assert "".join(piece.text for piece in pieces)
    assert not any(piece.finish_reason for piece in pieces)
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.message.endswith("may lack this turn: with it, its num_turns is 1")
    apart.thaw()
    # Redis may still carry out what was sent to it before: the count tells, and the session is free in any case.
    turns = await apart.num_turns(session_id)
    await eventually_say(apart.sessions, session_id)
    assert await apart.num_turns(session_id) in (turns + 1, turns + 2)


async def eventually_say(sessions: Sessions, session_id: str) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await say(sessions, session_id, max_tokens=1)
                return
            except Exception:
                await asyncio.sleep(0.1)


async def test_a_turn_that_redis_took_without_our_hearing_of_it_does_not_block_the_session(apart: Apart) -> None:
    session_id = await apart.create()
    apart.freeze()
    with pytest.raises(Unavailable):
        await begin(apart.sessions, session_id)
    apart.thaw()  # and takes the lease now
    await asyncio.sleep(1.0)
    await say(apart.sessions, session_id)


async def test_a_long_turn_keeps_its_session_past_the_lease(apart: Apart) -> None:
    session_id = await apart.create()
    async with await begin(apart.sessions, session_id, max_tokens=30, ignore_eos=True) as answer:
        await anext(answer)
        for _ in range(6):  # longer than the lease of two seconds
            await asyncio.sleep(0.5)
            with pytest.raises(Conflict):
                await begin(apart.sessions, session_id)
        await said(answer)
    assert await apart.num_turns(session_id) == 1


async def test_after_redis_lost_everything_the_session_is_not_found_and_new_ones_work(apart: Apart) -> None:
    session_id = await apart.create()
    await say(apart.sessions, session_id)
    running = await begin(apart.sessions, session_id, max_tokens=30, ignore_eos=True)
    apart.empty()
    with pytest.raises(SessionNotFound):
        await said(running)
    with pytest.raises(SessionNotFound):
        await begin(apart.sessions, session_id)
    assert (await apart.sessions.page(TENANT)).sessions == ()
    again = await apart.create()
    await say(apart.sessions, again)
    assert await apart.num_turns(again) == 1


async def test_stopping_does_not_wait_for_a_redis_that_is_away(apart: Apart) -> None:
    session_id = await apart.create()
    answer = await begin(apart.sessions, session_id, max_tokens=30, ignore_eos=True)
    apart.freeze()
    await answer.aclose()
    async with asyncio.timeout(3):
        await apart.sessions.stop()
