"""OpenAI's words for the form of an answer and for tools, as messages; what has no such form is refused by name."""

import json
from typing import Any

import pytest

from gemline.client.formats import response_format, tool_options
from gemline.client.requests import conversation, sampling_options
from gemline.client.types import Message, Messages, ToolCall
from gemline.errors import InvalidRequest
from gemline.v1 import inference_pb2 as pb

SCHEMA = {"type": "object", "properties": {"é": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}}


def test_each_format_has_its_message() -> None:
    assert response_format({"type": "text"}) == pb.ResponseFormat()
    assert response_format({"type": "json_object"}).json_object
    assert response_format({"type": "regex", "regex": "a+"}).regex == "a+"
    assert response_format({"type": "grammar", "grammar": "start: A"}).grammar == "start: A"
    by_schema = response_format({"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}})
    assert (json.loads(by_schema.json_schema), by_schema.strict) == (SCHEMA, True)


@pytest.mark.parametrize(
    "wanted",
    [{}, {"type": "xml"}, {"type": "regex"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}],
)
def test_another_format_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        response_format(wanted)
    assert caught.value.param == "response_format"


def test_tools_go_with_the_other_options() -> None:
    options = sampling_options(
        {"max_tokens": 3, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    )
    [tool] = options.tools.tools
    assert (tool.name, tool.description, json.loads(tool.parameters), tool.strict) == ("f", "d", SCHEMA, True)
    assert (options.tools.choice, options.tools.single, options.max_tokens) == (pb.TOOL_CHOICE_REQUIRED, True, 3)
    assert tool_options([TOOL], {"type": "function", "function": {"name": "f"}}, None).name == "f"
    assert not sampling_options({"tools": None, "tool_choice": None}).HasField("tools")


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{}], None, "tools"),
        ([{"type": "function"}], None, "tools"),
        ([TOOL], "maybe", "tool_choice"),
        ([TOOL], 5, "tool_choice"),
    ],
)
def test_wrong_tools_are_refused_by_name(tools: list[dict[str, Any]], choice: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tool_options(tools, choice, None)
    assert caught.value.param == param


def test_calls_and_results_are_messages() -> None:
    said: Messages = [
        Message("assistant", "", (ToolCall("c1", "f", "{}"),)),
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
    ]
    called, result = conversation(said)
    assert [(call.id, call.name, call.arguments) for call in called.tool_calls] == [("c1", "f", "{}")]
    assert (result.role, result.content, result.tool_call_id) == (pb.ROLE_TOOL, "x", "c1")
