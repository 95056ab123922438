"""`gemline chat`, over a pipe and in a terminal."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.commands import COMMAND, environment, gemline
from support.fake_gateway import Fail, FakeGateway, Say

from gemline.v1 import inference_pb2 as pb


def sent(gateway: FakeGateway) -> list[list[str]]:
    """The contents of the messages of each request."""
    return [
        [message.content for message in request.messages]
        for request in gateway.requests
        if isinstance(request, pb.ChatStreamRequest)
    ]


def test_a_pipe_of_questions_is_one_conversation(home: Path, gateway: FakeGateway) -> None:
    done = gemline("chat", home=home, stdin=b"Hi\n\nAnd?\n")
    assert (done.returncode, done.stdout) == (0, "Hello\nHello\n")
    assert sent(gateway) == [["Hi"], ["Hi", "Hello", "And?"]]
    assert done.stderr.count("tokens/s") == 2


def test_new_starts_over_and_exit_leaves(home: Path, gateway: FakeGateway) -> None:
    done = gemline("chat", home=home, stdin=b"Hi\n/new\nAgain\n/exit\nNever\n")
    assert done.returncode == 0
    assert sent(gateway) == [["Hi"], ["Again"]]


def test_save_writes_the_conversation(home: Path, gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "talk with spaces.json"
    assert gemline("chat", home=home, stdin=f"Hi\n/save {path}\n".encode()).returncode == 0
    assert [message["content"] for message in json.loads(path.read_text())] == ["Hi", "Hello"]


def test_an_unknown_command_is_not_sent_but_explained(home: Path, gateway: FakeGateway) -> None:
    done = gemline("chat", home=home, stdin=b"/sing\n/save\n")
    assert done.returncode == 0
    assert done.stderr.count("/new starts over") == 2
    assert sent(gateway) == []


def test_the_system_message_goes_first(home: Path, gateway: FakeGateway) -> None:
    gemline("chat", "--system", "Be brief.", home=home, stdin=b"Hi\n/new\nHi\n")
    assert sent(gateway) == [["Be brief.", "Hi"]] * 2


def test_a_json_schema_goes_with_each_question(home: Path, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text('{"type": "object"}')
    assert gemline("chat", "--json-schema", str(file), home=home, stdin=b"Hi\nAnd?\n").returncode == 0
    asked = [request for request in gateway.requests if isinstance(request, pb.ChatStreamRequest)]
    assert [json.loads(request.sampling.response_format.json_schema) for request in asked] == [{"type": "object"}] * 2


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_json_schema_that_is_none_is_named(
    home: Path, gateway: FakeGateway, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "person.json"
    if text is not None:
        file.write_text(text)
    done = gemline("chat", "--json-schema", str(file), home=home, stdin=b"Hi\n")
    assert done.returncode != 0
    assert str(file) in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
    assert sent(gateway) == []


def test_a_pipe_stops_at_the_first_error(home: Path, gateway: FakeGateway) -> None:
    gateway.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, "too long", (("gemline-code", "invalid_request"),)))
    done = gemline("chat", home=home, stdin=b"Hi\nAnd?\n")
    assert (done.returncode, done.stderr) == (1, "gemline: too long\n")


class Screen:
    """`gemline chat` in a terminal of its own."""

    def __init__(self, home: Path) -> None:
        self._terminal, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "chat"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(home, TERM="dumb"),
            start_new_session=True,
        )
        os.close(theirs)
        os.set_blocking(self._terminal, False)
        self.seen = ""

    def type(self, line: str) -> None:
        os.write(self._terminal, f"{line}\n".encode())

    def wait_for(self, text: str) -> None:
        """Until it shows after what was waited for before."""
        limit = time.monotonic() + 20
        while text not in self.seen:
            assert time.monotonic() < limit, f"{text!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self._terminal, 4096).decode()
            except BlockingIOError:
                time.sleep(0.01)
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def screen(home: Path) -> Iterator[Screen]:
    screen = Screen(home)
    yield screen
    screen.close()


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(screen: Screen, gateway: FakeGateway) -> None:
    gateway.script.append(Say(("Half an ans",), hang=True))
    screen.wait_for("serving gemma")
    screen.wait_for("> ")
    screen.type("Hi")
    screen.wait_for("Half an ans")
    screen.process.send_signal(signal.SIGINT)
    screen.wait_for("(stopped)")
    assert gateway.ended.wait(5)
    screen.wait_for("> ")
    screen.type("And?")
    screen.wait_for("Hello")
    screen.wait_for("tokens/s")
    screen.type("/exit")
    assert screen.process.wait(10) == 0
    assert sent(gateway) == [["Hi"], ["Hi", "Half an ans", "And?"]]


def test_ctrl_c_before_the_first_word_forgets_the_question(screen: Screen, gateway: FakeGateway) -> None:
    gateway.script.append(Say((), hang=True))
    screen.wait_for("> ")
    screen.type("Hi")
    while not gateway.requests:
        time.sleep(0.01)
    screen.process.send_signal(signal.SIGINT)
    screen.wait_for("(stopped)")
    screen.type("Again")
    screen.wait_for("Hello")
    assert sent(gateway) == [["Hi"], ["Again"]]


def test_ctrl_c_at_the_prompt_does_not_leave(screen: Screen) -> None:
    screen.wait_for("> ")
    time.sleep(0.1)
    screen.process.send_signal(signal.SIGINT)
    screen.wait_for("/exit or Ctrl-D leaves")
    screen.wait_for("> ")
    screen.type("/exit")
    assert screen.process.wait(10) == 0


def test_a_person_sees_an_error_and_goes_on(screen: Screen, gateway: FakeGateway) -> None:
    gateway.script.append(Fail(grpc.StatusCode.INVALID_ARGUMENT, "too long", (("gemline-code", "invalid_request"),)))
    screen.wait_for("> ")
    screen.type("Hi")
    screen.wait_for("error: too long")
    screen.type("Again")
    screen.wait_for("Hello")
    assert sent(gateway) == [["Hi"], ["Again"]]


def test_a_models_escape_sequences_do_not_steer_the_terminal(screen: Screen, gateway: FakeGateway) -> None:
    gateway.script.append(Say(("\x1b]0;title\x07",)))
    screen.wait_for("> ")
    screen.type("Hi")
    screen.wait_for("\\x1b]0;title\\x07")
