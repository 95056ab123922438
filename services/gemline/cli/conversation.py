"""A conversation that always alternates, as Gemma's template wants it: the user's turn, then the model's."""

import json
from pathlib import Path

from gemline.client import Message
from gemline.errors import ConfigurationError


class Conversation:
    """Turns so far. A question whose answer never came leaves no trace."""

    def __init__(self, system: str | None = None) -> None:
        self._system = [Message("system", system)] if system else []
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """All of it, the system message first."""
        return [*self._system, *self._turns]

    def asking(self, question: str) -> list[Message]:
        """What to send to have this answered; nothing is kept yet."""
        return [*self.messages, Message("user", question)]

    def keep(self, question: str, answer: str) -> None:
        """Keep a question with its answer, be it only the beginning of one; without any, neither."""
        if answer:
            self._turns += [Message("user", question), Message("assistant", answer)]

    def restart(self) -> None:
        """Forget every turn."""
        self._turns.clear()

    def save(self, path: Path) -> None:
        """Write it as JSON, in the form of OpenAI's `messages`."""
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        try:
            path.write_text(json.dumps(messages, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot save to {path}: {error.strerror}") from None
