"""Conversations that the gateway keeps, the same through both clients."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from support.client_api import ClientApi, call, listed, read_all
from support.fake_gateway import REQUEST_ID, Fail, FakeGateway, Say, Served

from gemline.client import AsyncSession, Message, Session
from gemline.errors import Conflict, InvalidRequest, SessionNotFound, TurnNotSaved, Unavailable, WorkerLost
from gemline.v1 import inference_pb2, sessions_pb2

REFUSED = Fail(grpc.StatusCode.UNAVAILABLE, "away", (("gemline-code", "unavailable"),))
BROKEN = Fail(grpc.StatusCode.UNAVAILABLE, "the connection broke")
UNSAVED = Fail(grpc.StatusCode.UNAVAILABLE, "the session may lack it", (("gemline-code", "turn_not_saved"),))
BUSY = Fail(grpc.StatusCode.ABORTED, "another turn runs", (("gemline-code", "conflict"),))


def turns(gateway: FakeGateway) -> list[sessions_pb2.ChatSessionRequest]:
    return [request for request in gateway.requests if isinstance(request, sessions_pb2.ChatSessionRequest)]


@pytest.fixture
async def session(api: ClientApi) -> Any:
    return await call(api.sessions.create)


async def test_a_session_is_made_of_the_only_model_or_the_one_that_is_named(
    api: ClientApi, gateway: FakeGateway
) -> None:
    made = await call(api.sessions.create, ttl_s=60, metadata={"topic": "birds"})
    assert isinstance(made, Session | AsyncSession)
    assert (made.info.model, made.info.ttl_s, made.info.metadata) == ("gemma", 60, {"topic": "birds"})
    assert made.info.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
    named = await call(api.sessions.create, model="gemma-9b")
    assert (named.info.model, named.id == made.id) == ("gemma-9b", False)


async def test_a_turn_brings_the_new_message_alone(session: Any, gateway: FakeGateway) -> None:
    answer = await call(session.chat, "Hi", temperature=0.5)
    assert (answer.text, answer.finish_reason, answer.request_id) == ("Hello", "stop", REQUEST_ID)
    assert answer.usage.cached_tokens == 4
    await call(session.chat, [Message("user", "a"), Message("assistant", "b"), {"role": "user", "content": "c"}])
    first, second = turns(gateway)
    assert [message.content for message in first.messages] == ["Hi"]
    assert first.messages[0].role == inference_pb2.ROLE_USER
    assert (first.sampling.temperature, first.session_id) == (0.5, session.id)
    assert [message.content for message in second.messages] == ["a", "b", "c"]
    assert session.info.num_turns == 0
    assert (await call(session.refresh)).num_turns == session.info.num_turns == 2


async def test_a_turn_can_be_streamed(session: Any) -> None:
    stream = session.stream("Hi")
    assert [piece.text for piece in await read_all(stream)] == ["Hel", "lo", ""]
    assert (stream.text, stream.finish_reason, stream.usage.prompt_tokens) == ("Hello", "stop", 7)


async def test_sessions_are_found_by_their_id_and_listed_over_all_pages(api: ClientApi) -> None:
    made = [await call(api.sessions.create) for _ in range(5)]
    found = await call(api.sessions.get, made[1].id)
    assert found.info == made[1].info
    assert [session.id for session in await listed(api)] == [session.id for session in made]


async def test_a_fork_is_a_session_of_its_own(session: Any) -> None:
    await call(session.chat, "Hi")
    fork = await call(session.fork, ttl_s=5, metadata={"a": "b"})
    assert (fork.id == session.id, fork.info.num_turns) == (False, 1)
    await call(fork.chat, "And?")
    assert ((await call(session.refresh)).num_turns, (await call(fork.refresh)).num_turns) == (1, 2)


async def test_a_deleted_session_is_not_found(api: ClientApi, session: Any) -> None:
    await call(session.delete)
    for method in (session.chat, session.fork, session.refresh, session.delete):
        with pytest.raises(SessionNotFound):
            await call(method, *(["Hi"] if method == session.chat else []))
    with pytest.raises(SessionNotFound):
        await call(api.sessions.get, session.id)


async def test_a_turn_that_the_gateway_did_not_take_is_sent_again(session: Any, gateway: FakeGateway) -> None:
    gateway.script.extend([REFUSED, REFUSED, Say()])
    assert (await call(session.chat, "Hi")).text == "Hello"
    assert len(turns(gateway)) == 3


@pytest.mark.parametrize(
    ("fail", "error"),
    [(BROKEN, Unavailable), (UNSAVED, TurnNotSaved), (BUSY, Conflict)],
    ids=["broken", "lost", "busy"],
)
async def test_a_turn_that_may_have_been_taken_is_sent_once(
    session: Any, gateway: FakeGateway, fail: Fail, error: type[Exception]
) -> None:
    gateway.script.append(fail)
    with pytest.raises(error) as caught:
        await call(session.chat, "Hi")
    assert type(caught.value) is error
    assert len(turns(gateway)) == 1


async def test_a_turn_that_failed_after_its_first_piece_is_not_sent_again(session: Any, gateway: FakeGateway) -> None:
    lost = Fail(grpc.StatusCode.UNAVAILABLE, "lost", (("gemline-code", "worker_lost"),))
    gateway.script.append(Say(("Hel",), fail=lost))
    with pytest.raises(WorkerLost):
        await call(session.chat, "Hi")
    assert len(turns(gateway)) == 1


async def test_what_changes_nothing_is_tried_as_ever_and_what_makes_sessions_only_when_refused(
    api: ClientApi, session: Any, gateway: FakeGateway
) -> None:
    gateway.script.extend([BROKEN, BROKEN, Say()])
    assert (await call(session.refresh)).id == session.id
    for method in (api.sessions.create, session.fork):
        gateway.script.extend([REFUSED, Say(), BROKEN])
        await call(method)
        with pytest.raises(Unavailable):
            await call(method)
    gateway.script.clear()


async def test_a_deletion_whose_answer_was_lost_is_one_all_the_same(
    session: Any, gateway: FakeGateway, served: Served
) -> None:
    gateway.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "done"))
    await call(session.delete)
    assert session.id not in served.sessions.kept


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"ttl_s": -1}, "ttl_s"),
        ({"ttl_s": "long"}, "ttl_s"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"\ud800": ""}}, "metadata"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(
    api: ClientApi, session: Any, options: dict[str, Any], param: str
) -> None:
    for method in (api.sessions.create, session.fork):
        with pytest.raises(InvalidRequest) as caught:
            await call(method, **options)
        assert caught.value.param == param


async def test_a_message_that_is_none_is_refused(session: Any, gateway: FakeGateway) -> None:
    for message in ("\ud800", [None], [Message("nobody", "x")]):
        with pytest.raises(InvalidRequest) as caught:
            await call(session.chat, message)
        assert caught.value.param == "messages"
    assert turns(gateway) == []


async def test_sessions_of_a_closed_client_say_so(api: ClientApi, session: Any) -> None:
    await api.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        await call(session.chat, "Hi")
    with pytest.raises(RuntimeError, match="this client is closed"):
        await call(api.sessions.create, model="gemma")
