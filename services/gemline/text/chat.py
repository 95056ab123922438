"""A conversation and Gemma's rules for its turns. Knows no tokenizer: `Tokenizer.encode_chat` puts the markers in."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from gemline.errors import InvalidRequest

SystemPrompt = Literal["refuse", "prepend"]

_PARAM = "messages"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: role is "user", "model" or "system"."""

    role: str
    content: str


def gemma_turns(
    turns: Sequence[Turn], system_prompt: SystemPrompt = "refuse", *, continues: bool = False
) -> tuple[Turn, ...]:
    """The turns as Gemma's template takes them: user and model alternate, the user speaks first and last.

    Gemma 2 was trained without a system role. "refuse" raises on one; "prepend" puts a first system turn's text before
    the first user turn's, a blank line between. White space around a content is cut off, as the template does. When
    the turns continue a conversation, none of them is its first.

    Raises InvalidRequest(param="messages").
    """
    _check_roles(turns, system_prompt, continues)
    ordered = _without_system([Turn(turn.role, turn.content.strip()) for turn in turns])
    _check_order(ordered, offset=len(turns) - len(ordered))
    return tuple(ordered)


def _check_roles(turns: Sequence[Turn], system_prompt: SystemPrompt, continues: bool) -> None:
    if not turns:
        raise InvalidRequest("messages is empty: it must hold at least one user message", param=_PARAM)
    for index, turn in enumerate(turns):
        if turn.role not in ("user", "model", "system"):
            raise _wrong(index, turn.role[:32], "it must be user, assistant or system")
        if turn.role == "system" and system_prompt == "refuse":
            raise _wrong(index, "system", "Gemma 2 has no such role; put the text into the first user message")
        if turn.role == "system" and (continues or index > 0):
            raise _wrong(index, "system", "only a conversation's first may have it")


def _without_system(turns: list[Turn]) -> list[Turn]:
    """The same turns, the system's text put before the user's."""
    if turns[0].role != "system":
        return turns
    if len(turns) == 1 or turns[1].role != "user":
        raise _wrong(0, "system", "a user message must follow it")
    system, user, *rest = turns
    return [Turn("user", "\n\n".join(part for part in (system.content, user.content) if part)), *rest]


def _check_order(turns: list[Turn], offset: int) -> None:
    """`offset` is the number that the first of these turns has in the request."""
    for index, (turn, expected) in enumerate(zip(turns, cycle(("user", "model")), strict=False), start=offset):
        if turn.role != expected:
            raise _wrong(
                index,
                _public(turn.role),
                f"{_public(expected)!r} must stand there, for the user speaks first and the two alternate",
            )
    if turns[-1].role != "user":
        raise _wrong(offset + len(turns) - 1, _public(turns[-1].role), "the user must speak last")


def _wrong(index: int, role: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"messages[{index}] has role {role!r}: {rule}", param=_PARAM)


def _public(role: str) -> str:
    """The role's name in our API, where Gemma's own word is "model"."""
    return "assistant" if role == "model" else role
