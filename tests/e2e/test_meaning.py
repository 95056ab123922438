"""The model that `gemline up` serves when none is named answers what a newcomer tries first, however it is served."""

import json
import os
import signal
from collections.abc import Iterator

import pytest
from support.decode_workers import wait_for_workers
from support.stack import Running, start_stack

from gemline.client import Client, Message

pytestmark = pytest.mark.slow

TOPOLOGIES = {"split": (), "colocated": ("--topology", "colocated", "--decode", "2")}
CONVERSATION = ("Hello!", "My name is Ada.", "What is 17 + 25?", "What is the capital of Japan?", "What is my name?")


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """Both topologies, in the precision that this machine chooses."""
    running = {
        name: start_stack(tmp_path_factory.mktemp(name), "--runner", "process", *options, shipped=True)
        for name, options in TOPOLOGIES.items()
    }
    yield running
    for stack in running.values():
        stack.stop()


def client_of(stack: Running) -> Client:
    return Client(stack.ready["grpc"], api_key=stack.ready["api_key"], timeout_s=120)


def talk(client: Client) -> list[str]:
    """What it answers, turn by turn."""
    messages: list[Message] = []
    for text in CONVERSATION:
        messages.append(Message("user", text))
        messages.append(Message("assistant", client.chat(messages, max_tokens=48, temperature=0.0).text))
    return [message.content for message in messages[1::2]]


def test_the_first_prompt_is_answered_sensibly(stacks: dict[str, Running]) -> None:
    assert "demo model" in stacks["split"].output.read_text()


def test_a_conversation_is_held_alike_over_both_paths(stacks: dict[str, Running]) -> None:
    with client_of(stacks["split"]) as split, client_of(stacks["colocated"]) as colocated:
        answers = talk(split)
        assert answers == talk(colocated)
    assert "42" in answers[2]
    assert "Tokyo" in answers[3]
    assert "Ada" in answers[4]


def test_openais_client_gets_json(stacks: dict[str, Running]) -> None:
    stack = stacks["split"]
    asked = "Give me a JSON object with name Ada and age 36."
    answer = stack.openai().chat.completions.create(
        model=stack.model, messages=[{"role": "user", "content": asked}], temperature=0, max_tokens=48
    )
    assert json.loads(answer.choices[0].message.content or "") == {"name": "Ada", "age": 36}


def test_a_session_remembers_the_name_after_its_worker_was_killed(stacks: dict[str, Running]) -> None:
    stack = stacks["colocated"]
    with client_of(stack) as client:
        session = client.sessions.create()
        session.chat("My name is Ada.", max_tokens=48, temperature=0.0)
        for _ in range(2):
            os.kill(wait_for_workers(stack, 2)[0].pid, signal.SIGKILL)
            assert "Ada" in session.chat("What is my name?", max_tokens=48, temperature=0.0).text
