"""A conversation alternates, whatever happened to an answer."""

import json
from pathlib import Path

import pytest

from gemline.cli.conversation import Conversation
from gemline.client import Message
from gemline.errors import ConfigurationError


def test_a_question_is_kept_with_its_answer() -> None:
    conversation = Conversation()
    assert conversation.asking("Hi") == [Message("user", "Hi")]
    conversation.keep("Hi", "Hello")
    assert conversation.asking("And?") == [
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "And?"),
    ]


def test_a_question_without_an_answer_leaves_no_trace() -> None:
    conversation = Conversation()
    conversation.asking("Hi")
    conversation.keep("Hi", "")
    assert conversation.messages == []


def test_a_restart_keeps_the_system_message_alone() -> None:
    conversation = Conversation("Be brief.")
    conversation.keep("Hi", "Hello")
    conversation.restart()
    assert conversation.messages == [Message("system", "Be brief.")]


def test_it_is_saved_as_json_that_openai_clients_take(tmp_path: Path) -> None:
    conversation = Conversation()
    conversation.keep("Grüß", "dich")
    conversation.save(tmp_path / "talk.json")
    text = (tmp_path / "talk.json").read_text(encoding="utf-8")
    assert json.loads(text) == [{"role": "user", "content": "Grüß"}, {"role": "assistant", "content": "dich"}]
    assert "Grüß" in text


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone/talk\.json: No such file"):
        Conversation().save(tmp_path / "gone" / "talk.json")
