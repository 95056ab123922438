"""Talking in a session, in a test: one turn, its text and what it took."""

from typing import Any, NamedTuple

from support.in_process import TENANT

from gemline.cluster.sessions import SessionStore
from gemline.gateway.core import new_request_id
from gemline.gateway.requests import GenerationRequest, Message, Prompt, SamplingOptions, Tenant, Usage
from gemline.gateway.sessions import Sessions
from gemline.gateway.turn_answer import TurnAnswer


class Said(NamedTuple):
    """A whole answer."""

    text: str
    finish_reason: str | None
    usage: Usage


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def a_request(messages: tuple[Message, ...], model: str = "", **sampling: Any) -> GenerationRequest:
    options = SamplingOptions(**({"temperature": 0.0, "max_tokens": 8} | sampling))
    return GenerationRequest(new_request_id(), model, Prompt(messages=messages), options)


async def begin(
    sessions: Sessions, session_id: str, text: str = "Hello", tenant: Tenant = TENANT, **sampling: Any
) -> TurnAnswer:
    return await sessions.generate(tenant, session_id, a_request(user(text), **sampling))


async def said(answer: Any) -> Said:
    """Reads it to its end."""
    pieces = [piece async for piece in answer]
    last = pieces[-1]
    assert last.usage is not None
    return Said("".join(piece.text for piece in pieces), last.finish_reason, last.usage)


async def say(sessions: Sessions, session_id: str, text: str = "Hello", **sampling: Any) -> Said:
    return await said(await begin(sessions, session_id, text, **sampling))


async def ids_of(store: SessionStore, session_id: str) -> list[int]:
    """What the session holds."""
    turn = await store.begin_turn(TENANT.tenant_id, session_id)
    await store.release(turn)
    return list(turn.token_ids)
