"""Calls of functions in a model's turn, found in its text as it comes. Knows no grammar; relies on its form.

The form (`tools.py`): <tool_call>{"name": "NAME", "arguments": JSON}</tool_call>, a line break before the next.
"""

import secrets
from collections.abc import Iterable
from dataclasses import replace

from gemline.gateway.requests import CallDelta, Piece
from gemline.gateway.tools import BEFORE_ARGUMENTS, BEFORE_NAME, OPEN

_HEAD = OPEN + BEFORE_NAME
_QUOTE, _ESCAPE = '"', "\\"
TOOL_CALLS = "tool_calls"  # why an answer ended that holds one


class CallReader:
    """Of one answer. What does not begin like a call is text, to its end."""

    def __init__(self) -> None:
        self._held = ""  # of a beginning that is not told yet
        self._is_text = False
        self._arguments: _Value | None = None  # of the call that is being read
        self.num_calls = 0
        self.num_whole = 0  # of them, read to their end

    def push(self, text: str) -> tuple[str, tuple[CallDelta, ...]]:
        """What is new as text, and as calls."""
        if self._is_text:
            return text, ()
        held, self._held = self._held + text, ""
        deltas: list[CallDelta] = []
        while held:
            if self._arguments is not None:
                held = self._read_arguments(self._arguments, held, deltas)
            elif (begun := self._begin(held)) is not None:
                held = begun
                deltas.append(self._opened)
            elif self.num_calls == 0 and not held.startswith(OPEN[: len(held)]):
                self._is_text = True
                return held, tuple(deltas)
            else:
                self._held = held
                break
        return "", tuple(deltas)

    def finish(self) -> str:
        """What was held back and is text after all, now that no more comes."""
        held, self._held = self._held, ""
        return held if self.num_calls == 0 and not held.startswith(OPEN) else ""

    def _begin(self, held: str) -> str | None:
        """What follows the head of the next call; None until all of it is there."""
        start = held.find(_HEAD)
        end = held.find(BEFORE_ARGUMENTS, start)
        if start < 0 or end < 0:
            return None
        name = held[start + len(_HEAD) : end]
        self._opened = CallDelta(self.num_calls, f"call_{secrets.token_hex(12)}", name, "")
        self._arguments = _Value()
        self.num_calls += 1
        return held[end + len(BEFORE_ARGUMENTS) :]

    def _read_arguments(self, value: "_Value", held: str, deltas: list[CallDelta]) -> str:
        num_chars = value.push(held)
        if num_chars:
            deltas.append(CallDelta(self.num_calls - 1, "", "", held[:num_chars]))
        if value.is_whole:
            self._arguments = None
            self.num_whole += 1
        return held[num_chars:]


class _Value:
    """Where one JSON object ends in a text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False
        self.is_whole = False

    def push(self, text: str) -> int:
        """How many characters belong to it."""
        for index, character in enumerate(text):
            if self._in_string:
                self._in_string = self._is_escaped or character != _QUOTE
                self._is_escaped = character == _ESCAPE and not self._is_escaped
            elif character == _QUOTE:
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_whole = True
                    return index + (self._depth == 0)
        return len(text)


def with_calls(reader: CallReader, piece: Piece) -> Piece | None:
    """The piece, what is a call of it no text; None while there is nothing to show."""
    text, calls = reader.push(piece.text)
    if piece.finish_reason is not None:
        text += reader.finish()
        is_called = reader.num_whole > 0 and piece.finish_reason == "stop"
        reason = TOOL_CALLS if is_called else piece.finish_reason
        return piece._replace(text=text, calls=calls, finish_reason=reason)
    return piece._replace(text=text, calls=calls) if text or calls or piece.logprobs else None


def joined_calls(deltas: Iterable[CallDelta]) -> list[CallDelta]:
    """The calls, each in one piece."""
    calls: dict[int, CallDelta] = {}
    for delta in deltas:
        known = calls.get(delta.index)
        calls[delta.index] = delta if known is None else replace(known, arguments=known.arguments + delta.arguments)
    return list(calls.values())
