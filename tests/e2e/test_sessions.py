"""Conversations that the gateway keeps, as a user has them: SDK, OpenAI's client and the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support.commands import gemline
from support.stack import Running

from gemline.client import AsyncClient, Client, Message

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

STORY = "Tell me of the river and of the road beside it, at some length. " * 6


@pytest.fixture
def client(colocated_stack: Running) -> Iterator[Client]:
    with Client(colocated_stack.ready["grpc"], api_key=colocated_stack.ready["api_key"]) as client:
        yield client


def test_a_conversation_goes_on_with_the_new_turn_alone_and_finds_its_history_in_the_cache(client: Client) -> None:
    session = client.sessions.create(ttl_s=600, metadata={"topic": "rivers"})
    first = session.chat(STORY, max_tokens=40, temperature=0)
    with session.stream("And then?", max_tokens=8, temperature=0) as stream:
        texts = [piece.text for piece in stream]
    assert "".join(texts) == stream.text
    assert stream.usage is not None
    # All but the last generated token were computed, and whole blocks of sixteen are kept.
    assert stream.usage.cached_tokens >= (first.usage.total_tokens - 1) // 16 * 16 > 0
    assert session.refresh().num_tokens == stream.usage.total_tokens + 1
    session.delete()


def test_a_session_says_what_the_whole_conversation_would(client: Client) -> None:
    session = client.sessions.create()
    first = session.chat("Hello", max_tokens=8, temperature=0)
    turns = [Message("user", "Hello"), first.message, Message("user", "And then?")]
    whole = client.chat(turns, max_tokens=8, temperature=0)
    second = session.chat("And then?", max_tokens=8, temperature=0)
    if second.usage.prompt_tokens == whole.usage.prompt_tokens:  # the answer's text encodes to what was generated
        assert second.text == whole.text


async def test_many_sessions_at_once_do_not_mix(colocated_stack: Running) -> None:
    async with AsyncClient(colocated_stack.ready["grpc"], api_key=colocated_stack.ready["api_key"]) as client:
        alone = await client.sessions.create()
        expected = [(await alone.chat(text, max_tokens=12, temperature=0)).text for text in ("Hello", "And then?")]
        sessions = [await client.sessions.create() for _ in range(6)]
        for text, answer in zip(("Hello", "And then?"), expected, strict=True):
            answers = [await session.chat(text, max_tokens=12, temperature=0) for session in sessions]
            assert {one.text for one in answers} == {answer}
        listed = [session.id async for session in client.sessions.list()]
        assert set(listed) >= {session.id for session in sessions}
        for session in (alone, *sessions):
            await session.delete()


def test_openais_client_goes_on_at_a_sessions_address(colocated_stack: Running, client: Client) -> None:
    session = client.sessions.create()
    base_url = f"{colocated_stack.base_url}/sessions/{session.id}"
    with openai.OpenAI(base_url=base_url, api_key=colocated_stack.ready["api_key"], max_retries=0) as theirs:
        for text in ("Hello", "And then?"):
            theirs.chat.completions.create(
                model=colocated_stack.model, messages=[{"role": "user", "content": text}], max_tokens=8
            )
    assert session.refresh().num_turns == 2


def test_the_command_line_goes_on_with_a_session(colocated_stack: Running, client: Client, tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text(json.dumps(colocated_stack.ready))
    options = ("--max-tokens", "8", "--temperature", "0")
    begun = gemline("chat", "--session", "new", *options, home=tmp_path, stdin=b"Hello\n")
    assert begun.returncode == 0, begun.stderr
    (session_id,) = [word for word in begun.stderr.split() if word.startswith("ses_")]
    goes_on = gemline("chat", "--session", session_id, *options, home=tmp_path, stdin=b"And then?\n")
    assert goes_on.returncode == 0, goes_on.stderr
    twin = client.sessions.create()
    texts = [twin.chat(text, max_tokens=8, temperature=0).text for text in ("Hello", "And then?")]
    assert [begun.stdout, goes_on.stdout] == [f"{text}\n" for text in texts]
    assert json.loads(gemline("session", "show", session_id, home=tmp_path).stdout)["num_turns"] == 2
    assert session_id in gemline("session", "list", home=tmp_path).stdout
    assert gemline("session", "delete", session_id, home=tmp_path).returncode == 0
    assert gemline("session", "show", session_id, home=tmp_path).stderr.startswith("gemline: there is no session")
