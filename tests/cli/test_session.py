"""Conversations that the gateway keeps, from the command line."""

import json
from pathlib import Path

import grpc
import pytest
from support.commands import gemline
from support.fake_gateway import Fail, FakeGateway, Say, Served

from gemline.v1 import sessions_pb2 as pb


@pytest.fixture
def kept(served: Served) -> dict[str, pb.Session]:
    return served.sessions.kept


def asked(gateway: FakeGateway) -> list[tuple[str, list[str]]]:
    """The session and the contents of each turn."""
    turns = [request for request in gateway.requests if isinstance(request, pb.ChatSessionRequest)]
    return [(turn.session_id, [message.content for message in turn.messages]) for turn in turns]


def test_a_new_session_takes_each_question_alone(home: Path, gateway: FakeGateway, kept: dict[str, pb.Session]) -> None:
    done = gemline("chat", "--session", "new", home=home, stdin=b"Hi\nAnd?\n")
    assert (done.returncode, done.stdout) == (0, "Hello\nHello\n")
    (session_id,) = kept
    assert f"session {session_id}" in done.stderr
    assert asked(gateway) == [(session_id, ["Hi"]), (session_id, ["And?"])]


def test_a_session_goes_on_and_new_begins_another(
    home: Path, gateway: FakeGateway, kept: dict[str, pb.Session]
) -> None:
    gemline("chat", "--session", "new", home=home, stdin=b"Hi\n")
    (first,) = kept
    done = gemline("chat", "--session", first, home=home, stdin=b"And?\n/new\nHi\n")
    assert f"session {first}: 1 turns" in done.stderr
    first, second = kept
    assert asked(gateway) == [(first, ["Hi"]), (first, ["And?"]), (second, ["Hi"])]


def test_the_system_message_comes_with_a_sessions_first_turn_alone(
    home: Path, gateway: FakeGateway, kept: dict[str, pb.Session]
) -> None:
    gemline("chat", "--session", "new", "--system", "Be brief.", home=home, stdin=b"Hi\nAnd?\n")
    (session_id,) = kept
    assert asked(gateway) == [(session_id, ["Be brief.", "Hi"]), (session_id, ["And?"])]


def test_what_was_heard_of_a_session_can_be_saved(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    gemline("chat", "--session", "new", home=home, stdin=f"Hi\n/save {path}\n".encode())
    assert [message["content"] for message in json.loads(path.read_text())] == ["Hi", "Hello"]


def test_a_session_that_is_not_there_is_one_line_and_exit_code_1(home: Path, gateway: FakeGateway) -> None:
    for command in (("chat", "--session", "ses_x"), ("session", "show", "ses_x"), ("session", "delete", "ses_x")):
        done = gemline(*command, home=home, stdin=b"Hi\n")
        assert (done.returncode, done.stderr) == (1, "gemline: there is no such session\n")
    assert asked(gateway) == []


def test_a_turn_that_was_not_saved_is_told(home: Path, gateway: FakeGateway) -> None:
    unsaved = Fail(grpc.StatusCode.UNAVAILABLE, "the session may lack it", (("gemline-code", "turn_not_saved"),))
    gateway.script.extend([Say(), Say(("Hel", "lo"), fail=unsaved)])
    done = gemline("chat", "--session", "new", "--model", "gemma", home=home, stdin=b"Hi\n")
    assert (done.returncode, done.stdout) == (1, "Hello\n")
    assert done.stderr.endswith("gemline: the session may lack it\n")


def test_sessions_are_listed_shown_and_deleted(home: Path, kept: dict[str, pb.Session]) -> None:
    for _ in range(3):
        gemline("chat", "--session", "new", home=home, stdin=b"Hi\n")
    listed = gemline("session", "list", home=home)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(kept)
    assert "gemma  1 turns" in listed.stdout
    first, second, third = kept
    shown = json.loads(gemline("session", "show", first, home=home).stdout)
    assert (shown["id"], shown["num_turns"], shown["created_at"]) == (first, 1, "2023-11-14T22:13:20+00:00")
    assert gemline("session", "delete", first, third, home=home).stdout == f"{first}\n{third}\n"
    assert list(kept) == [second]
