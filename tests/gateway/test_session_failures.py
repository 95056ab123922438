"""Turns of sessions that fail, are canceled or refused, or meet another one: the session is as it was before."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, in_process
from support.session_talk import a_request, begin, said, say, user
from support.workers import measure, measuring

from gemline.cluster.records import Role
from gemline.errors import (
    Conflict,
    ContextLengthExceeded,
    GemlineError,
    InvalidRequest,
    SessionNotFound,
    Unavailable,
    WorkerLost,
)
from gemline.gateway.requests import Message
from gemline.gateway.sessions import Sessions


async def test_a_turn_that_is_closed_early_changes_nothing(sessions: Sessions, session_id: str) -> None:
    before = await say(sessions, session_id)
    async with await begin(sessions, session_id, "a long one", max_tokens=100, ignore_eos=True) as answer:
        await anext(answer)
    assert [piece async for piece in answer] == []
    session = await sessions.get(TENANT, session_id)
    assert session.record.num_tokens == before.usage.prompt_tokens + before.usage.completion_tokens + 1
    await say(sessions, session_id, "again", max_tokens=1)
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 2


async def test_a_turn_may_follow_at_once_on_one_that_was_given_up(sessions: Sessions, session_id: str) -> None:
    for _ in range(5):
        async with await begin(sessions, session_id, max_tokens=100, ignore_eos=True) as answer:
            await anext(answer)
        await say(sessions, session_id, max_tokens=1)
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 5
    assert not sessions._running_turns._leaving


async def test_a_turn_that_is_left_before_its_last_piece_is_not_kept(sessions: Sessions, session_id: str) -> None:
    async with await begin(sessions, session_id, max_tokens=2) as answer:
        await anext(answer)
        await asyncio.sleep(0.1)  # the answer is whole by now, but nobody has read its end
    await asyncio.sleep(0.05)
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 0


async def test_a_reader_that_is_canceled_while_the_turn_is_saved_has_it_saved(
    sessions: Sessions, session_id: str
) -> None:
    answer = await begin(sessions, session_id, max_tokens=2)
    saving = asyncio.Event()
    save = sessions._running_turns._store._commit

    async def slow(*, keys: list[str], args: list[str]) -> object:
        saving.set()
        await asyncio.sleep(0.1)
        return await save(keys=keys, args=args)

    sessions._running_turns._store._commit = slow  # type: ignore[assignment]
    reader = asyncio.create_task(said(answer))
    await saving.wait()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await answer.aclose()
    await asyncio.sleep(0.3)
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 1


async def test_while_a_turn_runs_another_one_is_a_conflict(sessions: Sessions, session_id: str) -> None:
    async with await begin(sessions, session_id, max_tokens=100, ignore_eos=True) as answer:
        await anext(answer)
        with pytest.raises(Conflict, match="is answering another turn"):
            await begin(sessions, session_id)
        fork = await sessions.fork(TENANT, session_id, None, None)
        assert (await say(sessions, fork.record.session_id)).text


async def test_turns_that_are_sent_all_at_once_are_answered_one_after_the_other(
    sessions: Sessions, session_id: str
) -> None:
    async def insist() -> None:
        while True:
            try:
                await say(sessions, session_id, max_tokens=2)
                return
            except Conflict:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(insist() for _ in range(8)))
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 8


@pytest.mark.parametrize(
    ("messages", "options", "error", "message", "param"),
    [
        (user("x"), {"model": "gpt-9"}, InvalidRequest, "is of model 'tiny', not 'gpt-9'", "model"),
        (user("word " * 600), {}, ContextLengthExceeded, r"has \d+ tokens, but tiny has a context of 256", "messages"),
        (user("x"), {"max_tokens": 256}, ContextLengthExceeded, r"max_tokens is 256: \d+ in all", "max_tokens"),
        ((Message("system", "be nice"), *user("x")), {}, InvalidRequest, "Gemma 2 has no such role", "messages"),
        ((Message("assistant", "x"),), {}, InvalidRequest, "'user' must stand there", "messages"),
        ((*user("x"), Message("assistant", "y")), {}, InvalidRequest, "the user must speak last", "messages"),
        ((), {}, InvalidRequest, "messages is empty", "messages"),
        (user("\ud800"), {}, InvalidRequest, "not valid Unicode", "messages"),
        (user("x"), {"temperature": 3.0}, InvalidRequest, "temperature must be from 0 to 2", "temperature"),
    ],
)
@pytest.mark.parametrize("num_turns", [0, 1])
async def test_a_turn_that_is_refused_changes_nothing_and_does_not_block_the_session(
    sessions: Sessions,
    session_id: str,
    messages: tuple[Message, ...],
    options: dict[str, Any],
    error: type[GemlineError],
    message: str,
    param: str,
    num_turns: int,
) -> None:
    for _ in range(num_turns):
        await say(sessions, session_id, max_tokens=2)
    before = (await sessions.get(TENANT, session_id)).record
    with pytest.raises(error, match=message) as caught:
        await sessions.generate(TENANT, session_id, a_request(messages, **options))
    assert caught.value.param == param
    after = (await sessions.get(TENANT, session_id)).record
    assert (after.num_turns, after.num_tokens, after.updated_us) == (num_turns, before.num_tokens, before.updated_us)
    assert (await say(sessions, session_id, max_tokens=1)).text is not None


async def test_a_session_that_has_filled_the_context_says_so_with_both_numbers(
    sessions: Sessions, session_id: str
) -> None:
    await say(sessions, session_id, max_tokens=None, ignore_eos=True)
    with pytest.raises(ContextLengthExceeded, match=r"the prompt has 2\d\d tokens, but tiny has a context of 256"):
        await begin(sessions, session_id)
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 1


async def test_a_session_that_is_deleted_under_its_turn_is_missed_at_the_answers_end(
    sessions: Sessions, session_id: str
) -> None:
    answer = await begin(sessions, session_id, max_tokens=30, ignore_eos=True)
    texts = [(await anext(answer)).text]
    await sessions.delete(TENANT, session_id)
    with pytest.raises(SessionNotFound):
        async for piece in answer:
            texts.append(piece.text)
    assert len("".join(texts)) > 1
    assert (await sessions.page(TENANT)).sessions == ()


async def test_a_turn_whose_worker_dies_changes_nothing(
    platform: InProcess, sessions: Sessions, session_id: str
) -> None:
    await say(sessions, session_id)
    before = (await sessions.get(TENANT, session_id)).record
    answer = await begin(sessions, session_id, max_tokens=100, ignore_eos=True)
    await anext(answer)
    await platform.decode_worker.stop()
    with pytest.raises(WorkerLost):
        async for _ in answer:
            pass
    await platform.decode.stop()
    await eventually(lambda: not platform.gateway.ready())
    await eventually(lambda: not sessions._view.workers(Role.DECODE))  # it hears of it a moment after the link
    session = await sessions.get(TENANT, session_id)
    assert (session.record.num_turns, session.record.num_tokens) == (1, before.num_tokens)
    assert not session.owner_present
    with pytest.raises(Unavailable):  # no worker, but the session is free
        await begin(sessions, session_id)


async def test_turns_are_counted_by_how_they_ended(redis_url: str, tiny_checkpoint: Path) -> None:
    telemetry = measuring()
    async with in_process(redis_url, tiny_checkpoint, telemetry) as platform:
        sessions = platform.gateway.sessions
        session_id = (await sessions.create(TENANT, MODEL, None, {})).record.session_id
        for _ in range(2):
            await say(sessions, session_id, max_tokens=1)
        async with await begin(sessions, session_id, max_tokens=50, ignore_eos=True) as answer:
            await anext(answer)
        with pytest.raises(InvalidRequest):
            await begin(sessions, session_id, temperature=3.0)
        answer = await begin(sessions, session_id, max_tokens=1)
        await sessions.delete(TENANT, session_id)
        with pytest.raises(SessionNotFound):
            await said(answer)
        counted = {
            outcome: measure(telemetry, "gemline_gateway_session_turns_total", outcome=outcome)
            for outcome in ("saved", "dropped", "unsaved")
        }
    assert counted == {"saved": 2, "dropped": 2, "unsaved": 1}
