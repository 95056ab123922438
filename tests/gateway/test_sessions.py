"""Sessions over real workers, a real tokenizer and a real Redis: what a turn adds, and what it finds."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, host
from support.session_talk import a_request, begin, ids_of, said, say, user

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.block_hash import Roots, extend_hashes
from gemline.engine.options import EngineOptions
from gemline.gateway.requests import Message, Prompt
from gemline.gateway.sessions import Sessions

END_OF_TURN = 107


async def test_a_session_grows_by_question_and_answer(platform: InProcess, sessions: Sessions, session_id: str) -> None:
    first = await say(sessions, session_id, "Hello")
    ids = await ids_of(platform.store, session_id)
    prompt = await platform.gateway.tokenize(TENANT, MODEL, Prompt(messages=user("Hello")))
    assert ids[: len(prompt)] == prompt
    assert ids[-1] == END_OF_TURN
    assert len(ids) == len(prompt) + first.usage.completion_tokens + 1
    session = await sessions.get(TENANT, session_id)
    assert (session.record.num_turns, session.record.num_tokens, session.owner_present) == (1, len(ids), True)
    second = await say(sessions, session_id, "And then?")
    assert second.usage.prompt_tokens > len(ids)
    assert (await ids_of(platform.store, session_id))[: len(ids)] == ids


async def test_a_turn_is_answered_as_the_whole_conversation_would_be(platform: InProcess, sessions: Sessions) -> None:
    """Where the answers' texts encode to the ids that were generated; a model's random words do not always."""
    num_alike = 0
    for question in ("Hello", "one two three", "What is the answer?", "tell me", "字", "the user", "a", "b", "c", "d"):
        made = await sessions.create(TENANT, MODEL, None, {})
        session_id, further = made.record.session_id, "And then?"
        first = await say(sessions, session_id, question, max_tokens=5)
        messages = (*user(question), Message("assistant", first.text), *user(further))
        before = await ids_of(platform.store, session_id)
        whole = await platform.gateway.tokenize(TENANT, MODEL, Prompt(messages=messages))
        if whole[: len(before)] != before:
            continue
        num_alike += 1
        alone = await said(await platform.gateway.generate(TENANT, a_request(messages, MODEL, max_tokens=12)))
        second = await say(sessions, session_id, further, max_tokens=12)
        assert (second.text, second.finish_reason) == (alone.text, alone.finish_reason)
        assert second.usage.prompt_tokens == alone.usage.prompt_tokens
    assert num_alike >= 2


async def test_the_next_turn_finds_all_full_blocks_of_the_turns_before_in_the_cache(
    sessions: Sessions, session_id: str
) -> None:
    turns = [await say(sessions, session_id, "Tell me a story of some length, please. " * 2) for _ in range(3)]
    for before, turn in pairwise(turns):
        num_computed = before.usage.prompt_tokens + before.usage.completion_tokens - 1
        assert turn.usage.cached_tokens >= num_computed // 16 * 16 > 0


async def test_a_session_says_where_its_keys_and_values_are_and_how_large(
    platform: InProcess, sessions: Sessions, session_id: str
) -> None:
    await say(sessions, session_id, "Tell me a story of some length, please. " * 2)
    record, card = (await sessions.get(TENANT, session_id)).record, platform.decode_worker.card
    home = record.residence
    assert (home.worker_id, home.epoch) == (platform.decode.record.worker_id, platform.decode.record.epoch)
    assert home.window_start == record.num_tokens + 1 - card.window > 0
    assert home.num_bytes == card.global_token_bytes * record.num_tokens + card.local_token_bytes * (card.window - 1)
    ids, hashes = await ids_of(platform.store, session_id), list[bytes]()
    num_blocks = len(ids) // 16
    extend_hashes(hashes, Roots.of(card.revision, TENANT.cache_salt), ids, 16, num_blocks)
    assert home.tip == hashes[-1].hex()
    assert len(hashes) == num_blocks > 0


async def test_the_turns_of_a_session_stay_with_its_worker(
    platform: InProcess, sessions: Sessions, redis_url: str, tiny_checkpoint: Path
) -> None:
    engine = EngineOptions(num_kv_blocks=256, num_threads=1)
    second = host(DecodeWorker(DecodeOptions(tiny_checkpoint, MODEL, engine, prefill="never")), redis_url)
    await second.start()
    try:
        await eventually(lambda: len(platform.gateway._links._links) == 2)
        await asyncio.sleep(0.3)
        homes = set()
        for _ in range(16):
            session_id = (await sessions.create(TENANT, MODEL, None, {})).record.session_id
            own = set()
            for _ in range(3):
                await say(sessions, session_id, "Hello", max_tokens=2)
                own.add((await sessions.get(TENANT, session_id)).record.residence.worker_id)
            assert len(own) == 1
            homes |= own
        assert homes == {platform.decode.record.worker_id, second.record.worker_id}
    finally:
        await second.stop()


async def test_a_fork_finds_the_turns_of_its_source_in_the_cache(sessions: Sessions, session_id: str) -> None:
    first = await say(sessions, session_id, "Tell me a story of some length, please. " * 2)
    fork = await sessions.fork(TENANT, session_id, None, None)
    turn = await say(sessions, fork.record.session_id, "And then?")
    assert turn.usage.cached_tokens >= (first.usage.prompt_tokens - 1) // 16 * 16
    assert turn.text == (await say(sessions, session_id, "And then?")).text
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 2


async def test_several_messages_may_begin_a_session(sessions: Sessions, session_id: str) -> None:
    messages = (*user("one"), Message("assistant", "two"), *user("three"))
    request = a_request(messages)
    turn = await said(await sessions.generate(TENANT, session_id, request))
    assert turn.usage.completion_tokens
    await said(await sessions.generate(TENANT, session_id, a_request(messages)))
    assert (await sessions.get(TENANT, session_id)).record.num_turns == 2


@pytest.mark.parametrize("finish", ["length", "stop id", "stop string", "token in the middle of a stop string"])
async def test_however_an_answer_ends_its_turn_is_what_was_shown_and_an_end_of_turn(
    platform: InProcess, sessions: Sessions, session_id: str, finish: str
) -> None:
    fork = (await sessions.fork(TENANT, session_id, None, None)).record.session_id
    free_run = await say(sessions, fork, max_tokens=24, ignore_eos=True)
    whole = await ids_of(platform.store, fork)
    answer_ids = whole[free_run.usage.prompt_tokens : -1]
    tokenizer = await platform.gateway._tokenizers.get(platform.decode_worker.card)
    options: dict[str, Any] = {"max_tokens": 10}
    match finish:
        case "stop id":
            options = {"max_tokens": 24, "stop_token_ids": (answer_ids[9],)}
        case "stop string":
            options = {"max_tokens": 24, "stop": (tokenizer.decode(answer_ids[9:11]),)}
        case "token in the middle of a stop string":
            cut = next(i for i in range(4, 24) if len(tokenizer.decode(answer_ids[i : i + 1])) > 2)
            options = {"max_tokens": 24, "stop": (tokenizer.decode(answer_ids[cut : cut + 1])[1:],)}
    turn = await say(sessions, session_id, ignore_eos=True, **options)
    assert turn.finish_reason == ("length" if finish == "length" else "stop")
    ids = (await ids_of(platform.store, session_id))[turn.usage.prompt_tokens :]
    assert ids[-1] == END_OF_TURN
    assert tokenizer.decode(ids[:-1]) == turn.text
    assert free_run.text.startswith(turn.text)
    if finish in ("length", "stop id"):
        assert ids[:-1] == answer_ids[: len(ids) - 1]


async def test_text_comes_before_the_session_is_asked_to_keep_it(sessions: Sessions, session_id: str) -> None:
    pieces = [piece async for piece in await begin(sessions, session_id, max_tokens=4)]
    assert pieces[-1].finish_reason
    assert pieces[-1].text == ""
    assert not any(piece.finish_reason or piece.usage for piece in pieces[:-1])
