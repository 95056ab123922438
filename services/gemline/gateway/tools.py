"""Functions that a model may call: how it is told of them, how it must call them, and what came back. Pure.

Gemma 2 was trained with no such thing, so all of it is text: a call is a line of the model's turn, what it gave back a
part of the user's. A grammar holds the model to the form, so that whatever begins like a call is one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.gateway.constraints import of_text, schema_text
from gemline.gateway.requests import Message

MAX_TOOLS = 128
MAX_CALLS = 8  # in one turn
OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEFORE_NAME, BEFORE_ARGUMENTS = '{"name": "', '", "arguments": '
PARAM = "tools"
NAME_PATTERN = "[a-zA-Z0-9_-]{1,64}"

_NAME = re.compile(NAME_PATTERN)
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_SPACE = r"[\x20\x0A\x0D\x09]{1,32}"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NO_ARGUMENTS)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which functions there are, and whether one must be called: the one named, any ("required"), or none need be."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    name: str | None = None  # of the only one that may be called, and then must
    parallel: bool = True  # several calls in one turn


@dataclass(frozen=True, slots=True)
class SaidCall:
    """A call in an earlier turn; `arguments` is JSON as the model wrote it."""

    name: str
    arguments: str
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a conversation in which functions are called; role "tool" brings what a call gave."""

    role: str
    content: str
    calls: tuple[SaidCall, ...] = ()
    call_id: str = ""  # of role "tool": of the call that it answers


def check_tools(use: ToolUse) -> None:
    """Raises InvalidRequest, naming the field and what is wrong with it."""
    if len(use.tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(use.tools)} entries; at most {MAX_TOOLS} are taken", param=PARAM)
    for index, tool in enumerate(use.tools):
        if not _NAME.fullmatch(tool.name):
            message = f"tools[{index}]: a name has from 1 to 64 letters, digits, _ and -, not {tool.name[:80]!r}"
            raise InvalidRequest(message, param=PARAM)
    names = [tool.name for tool in use.tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tools: two functions have the name {twice!r}", param=PARAM)
    if use.name is not None and use.name not in names:
        raise InvalidRequest(f"tool_choice: no tool has the name {use.name[:80]!r}", param="tool_choice")


def tools_constraint(use: ToolUse, otherwise: Constraint | None = None) -> Constraint:
    """The form of the model's turn: calls, or where none need be any text, or what `otherwise` says.

    Raises InvalidRequest for what is too large or too deep, and for an `otherwise` that is no JSON schema.
    """
    callable_tools = [tool for tool in use.tools if use.name in (None, tool.name)]
    calls = "call" if use.name is not None or not use.parallel else f'call ("\\n" call){{0,{MAX_CALLS - 1}}}'
    which = " | ".join(f"tool_{index}" for index in range(len(callable_tools)))
    rules = [
        f"start: calls{'' if use.choice == 'required' or use.name is not None else ' | answer'}",
        f"calls: {calls}",
        f"call: {_quoted(OPEN)} ({which}) {_quoted(CLOSE)}",
    ]
    for index, tool in enumerate(callable_tools):
        head = _quoted(BEFORE_NAME + tool.name + BEFORE_ARGUMENTS)
        rules.append(f'tool_{index}: {head} args_{index} "}}"')
        rules.append(f"args_{index}: %json {_embedded(tool.parameters, strict=tool.strict, where=tool.name)}")
    if rules[0].endswith("answer"):
        rules += _answer_rules(otherwise)
    return of_text(Syntax.GRAMMAR, "\n".join(rules), param=PARAM)


def tools_prompt(use: ToolUse) -> str:
    """What the model is told, before the first words of the user."""
    lines = [
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}, ensure_ascii=False
        )
        for tool in use.tools
    ]
    example = OPEN + BEFORE_NAME + "..." + BEFORE_ARGUMENTS + "{...}}" + CLOSE
    must = "You must call a function now." if use.choice == "required" or use.name else "Call one only if it helps."
    if use.name:
        must = f"You must call {use.name} now."
    return "\n".join(
        [
            "You can call these functions:",
            *lines,
            f"To call functions, answer with nothing but a line {example} for each call.",
            f"What a function gives comes back as {_response('...', '...')}.",
            must,
        ]
    )


def told_messages(said: Sequence[Said], use: ToolUse | None) -> tuple[Message, ...]:
    """The conversation as user and assistant alone, the functions told before the user's first words."""
    names = {call.call_id: call.name for one in said for call in one.calls if call.call_id}
    turns: list[Message] = []
    for one in said:
        turn = _turn(one, names)
        follows_result = turn.role == "user" and turns and turns[-1].role == "user" and _is_result(one, said)
        if follows_result:
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n{turn.content}")
        else:
            turns.append(turn)
    if use is not None:
        _tell(turns, tools_prompt(use))
    return tuple(turns)


def _turn(one: Said, names: Mapping[str, str]) -> Message:
    if one.role == "tool":
        return Message("user", _response(names.get(one.call_id, ""), one.content))
    lines = [one.content] if one.content else []
    lines += [
        OPEN + BEFORE_NAME + call.name + BEFORE_ARGUMENTS + (call.arguments or "{}") + "}" + CLOSE for call in one.calls
    ]
    return Message(one.role, "\n".join(lines))


def _is_result(one: Said, said: Sequence[Said]) -> bool:
    """Whether it, or what stands right before it, is what a function gave: these are one turn with what follows."""
    index = next(index for index, other in enumerate(said) if other is one)
    return one.role == "tool" or (index > 0 and said[index - 1].role == "tool")


def _tell(turns: list[Message], prompt: str) -> None:
    for index, turn in enumerate(turns):
        if turn.role == "user":
            turns[index] = replace(turn, content=f"{prompt}\n\n{turn.content}")
            return


def _response(name: str, content: str) -> str:
    fields = {"name": name, "content": content} if name else {"content": content}
    return f"<tool_response>{json.dumps(fields, ensure_ascii=False)}</tool_response>"


def _answer_rules(otherwise: Constraint | None) -> Iterable[str]:
    if otherwise is None:
        return ("answer: TEXT", f"TEXT: /(?s:.*)/ & ~/{OPEN}(?s:.*)/")
    if otherwise.syntax is not Syntax.JSON_SCHEMA:
        message = (
            f"response_format of type {otherwise.syntax.value} cannot be combined with tools that need not be called"
        )
        raise InvalidRequest(message, param=otherwise.param)
    return (f"answer: %json {_embedded(json.loads(otherwise.text), strict=not otherwise.lenient, where='')}",)


def _embedded(schema: Mapping[str, Any], *, strict: bool, where: str) -> str:
    """A schema inside a grammar, with what a worker sets for one that stands alone."""
    options = {
        "whitespace_flexible": True,
        "whitespace_pattern": _SPACE,
        "lenient": not strict,
        "coerce_one_of": not strict,
    }
    return schema_text({**schema, "x-guidance": options}, PARAM, f"tools: {where}" if where else PARAM)


def _quoted(text: str) -> str:
    """As a literal of Lark."""
    return json.dumps(text)
