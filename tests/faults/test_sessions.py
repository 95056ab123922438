"""Sessions outlive what serves them: workers die between turns and under them, Redis comes back empty."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import redis as sync_redis
from support.decode_workers import decode_workers, holder, start_colocated, wait_for_workers
from support.stack import Running

from gemline.client import Client, Completion, RetryPolicy, Session
from gemline.cluster.records import WorkerRecord
from gemline.errors import SessionNotFound, Unavailable

pytestmark = pytest.mark.slow

NUM_SESSIONS = 6
FIRST = "Tell me of the river and of the road beside it, at some length. " * 4
SECOND = "And then?"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two decode workers that prefill for themselves, in a precision in which recomputing changes nothing."""
    running = start_colocated(tmp_path_factory.mktemp("sessions"), num_decode=2)
    yield running
    running.stop()


@pytest.fixture
def client(stack: Running) -> Iterator[Client]:
    """One that sends each turn once."""
    wait_for_workers(stack, 2)
    once = RetryPolicy(max_attempts=1)
    with Client(stack.ready["grpc"], api_key=stack.ready["api_key"], retry=once, timeout_s=120) as client:
        yield client


def say(session: Session, text: str, max_tokens: int = 24) -> Completion:
    return session.chat(text, max_tokens=max_tokens, temperature=0.0)


def kill(worker: WorkerRecord) -> None:
    os.kill(worker.pid, signal.SIGKILL)


def test_every_session_goes_on_when_a_worker_is_killed_between_its_turns(stack: Running, client: Client) -> None:
    sessions = [client.sessions.create() for _ in range(NUM_SESSIONS)]
    for number, session in enumerate(sessions):
        say(session, f"{number}: {FIRST}")
    for _ in range(2):
        expected = [say(session.fork(), SECOND) for session in sessions]
        kill(wait_for_workers(stack, 2)[0])
        answers = [say(session, SECOND) for session in sessions]
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        assert [answer.usage.prompt_tokens for answer in answers] == [one.usage.prompt_tokens for one in expected]
    assert [session.refresh().num_turns for session in sessions] == [3] * NUM_SESSIONS


def test_a_session_whose_workers_are_all_gone_waits_and_says_whether_its_owner_is_there(
    stack: Running, client: Client
) -> None:
    session = client.sessions.create()
    say(session, FIRST)
    assert session.refresh().owner_present
    expected = say(session.fork(), SECOND)
    for worker in wait_for_workers(stack, 2):
        kill(worker)
    limit_s = time.monotonic() + 30
    while session.refresh().owner_present:
        assert time.monotonic() < limit_s, "the owner is still said to be there"
        time.sleep(0.1)
    while True:
        try:
            answer = say(session, SECOND)
            break
        except Unavailable:  # until the workers are back: no turn is lost, and none counted twice
            assert time.monotonic() < limit_s + 90
            time.sleep(0.2)
    assert answer.text == expected.text
    assert session.refresh().num_turns == 2
    assert session.info.owner_present


def test_a_worker_killed_under_a_turn_costs_neither_the_answer_nor_the_turn(stack: Running, client: Client) -> None:
    session = client.sessions.create()
    say(session, FIRST)
    expected = say(session.fork(), SECOND, max_tokens=300)
    answers: list[Completion] = []
    asking = threading.Thread(target=lambda: answers.append(say(session, SECOND, max_tokens=300)))
    asking.start()
    kill(holder(decode_workers(stack)))
    asking.join(120)
    assert [(answer.text, answer.usage.completion_tokens) for answer in answers] == [
        (expected.text, expected.usage.completion_tokens)
    ]
    assert session.refresh().num_turns == 2
    wait_for_workers(stack, 2)
    assert say(session, SECOND).text


def test_a_session_that_redis_forgot_is_not_found_and_nothing_else_breaks(stack: Running, client: Client) -> None:
    sessions = [client.sessions.create() for _ in range(2)]
    for session in sessions:
        say(session, FIRST)
    with sync_redis.Redis.from_url(stack.ready["redis_url"]) as redis:  # as one that was started again, empty
        redis.flushall()
        redis.script_flush()
        redis.client_kill_filter(_type="normal", skipme=True)
    for session in sessions:
        with pytest.raises(SessionNotFound):
            say(session, SECOND)
    assert list(client.sessions.list()) == []
    wait_for_workers(stack, 2)
    assert client.generate("Once", max_tokens=4).text
    again = client.sessions.create()
    say(again, FIRST)
    say(again, SECOND)
    assert [session.info.num_turns for session in client.sessions.list()] == [2]
