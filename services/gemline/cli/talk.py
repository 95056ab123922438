"""Who keeps a conversation in the terminal: this program, or the gateway in a session."""

from pathlib import Path
from typing import Protocol

from gemline.cli.conversation import Conversation
from gemline.cli.terminal import remark
from gemline.client import Client, Message, Sampling, Session, Stream

NEW = "new"


class Talk(Protocol):
    """A conversation that goes on."""

    def ask(self, question: str) -> Stream:
        """Have it answered; nothing is kept yet."""

    def keep(self, question: str, stream: Stream) -> None:
        """The answer has ended, or was stopped."""

    def restart(self) -> None:
        """Begin another one."""

    def save(self, path: Path) -> None:
        """Write it down."""


class OwnTalk:
    """Kept here: all of it is sent each time. What was said of a stopped answer is part of it."""

    def __init__(self, client: Client, sampling: Sampling, system: str | None) -> None:
        self._client = client
        self._sampling = sampling
        self._conversation = Conversation(system)

    def ask(self, question: str) -> Stream:
        """Have it answered."""
        return self._client.chat_stream(self._conversation.asking(question), **self._sampling)

    def keep(self, question: str, stream: Stream) -> None:
        """Keep both."""
        self._conversation.keep(question, stream.text)

    def restart(self) -> None:
        """Forget every turn."""
        self._conversation.restart()

    def save(self, path: Path) -> None:
        """Write all turns."""
        self._conversation.save(path)


class SessionTalk:
    """Kept by the gateway: only the question is sent. A stopped answer leaves no trace."""

    def __init__(self, client: Client, sampling: Sampling, system: str | None, session_id: str) -> None:
        """`session_id` is that of a session, or "new"."""
        self._client = client
        self._sampling = sampling
        self._system = system
        self._said = Conversation(system)  # what was heard of it here, to be saved
        self._session = self._create() if session_id == NEW else self._find(session_id)
        self._num_turns = self._session.info.num_turns

    def ask(self, question: str) -> Stream:
        """Have it answered."""
        first = [Message("system", self._system)] if self._system and not self._num_turns else []
        return self._session.stream([*first, Message("user", question)], **self._sampling)

    def keep(self, question: str, stream: Stream) -> None:
        """The session has it if the answer has come to its end."""
        if stream.finish_reason is None:
            remark("the session is as it was before the question")
            return
        self._num_turns += 1
        self._said.keep(question, stream.text)

    def restart(self) -> None:
        """Go on in a new session; the old one stays."""
        self._session, self._num_turns = self._create(), 0
        self._said.restart()

    def save(self, path: Path) -> None:
        """Write the turns that were heard here."""
        self._said.save(path)

    def _create(self) -> Session:
        session = self._client.sessions.create()
        remark(f"session {session.id}")
        return session

    def _find(self, session_id: str) -> Session:
        session = self._client.sessions.get(session_id)
        remark(f"session {session.id}: {session.info.num_turns} turns, {session.info.num_tokens} tokens")
        return session
