"""Formats and tools of the public messages in the core's words, or an error that names the field."""

import json

import pytest

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.gateway.grpc_convert import chat_prompt, sampling_options
from gemline.gateway.grpc_formats import constraint, tool_use
from gemline.gateway.tools import Tool, ToolUse
from gemline.v1 import inference_pb2 as pb

SCHEMA = {"type": "integer"}


def test_formats_become_constraints() -> None:
    assert constraint(pb.ResponseFormat()) is None
    assert constraint(pb.ResponseFormat(json_object=False)) is None
    assert constraint(pb.ResponseFormat(regex="a+")) == Constraint(Syntax.REGEX, "a+")
    assert constraint(pb.ResponseFormat(grammar="start: A")) == Constraint(Syntax.GRAMMAR, "start: A")
    found = constraint(pb.ResponseFormat(json_schema=json.dumps(SCHEMA)))
    assert found is not None
    assert (found.syntax, json.loads(found.text), found.lenient) == (Syntax.JSON_SCHEMA, SCHEMA, True)
    strict = constraint(pb.ResponseFormat(json_schema=json.dumps(SCHEMA), strict=True))
    assert strict is not None
    assert not strict.lenient


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000, '{"a": ' * 80 + "1" + "}" * 80])
def test_a_schema_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint(pb.ResponseFormat(json_schema=text))
    assert caught.value.param == "response_format"
    with pytest.raises(InvalidRequest) as caught:
        tool_use(pb.ToolOptions(tools=[pb.Tool(name="f", parameters=text or "[]")]))
        raise InvalidRequest("only the constraint looks deeper", param="tools")
    assert caught.value.param == "tools"


def test_tools_become_a_use_of_them_and_constrain_the_answer() -> None:
    options = pb.ToolOptions(tools=[pb.Tool(name="f", description="d", parameters=json.dumps(SCHEMA))], single=True)
    use = tool_use(options)
    assert use == ToolUse((Tool("f", "d", SCHEMA),), parallel=False)
    given = sampling_options(pb.SamplingOptions(tools=options), use)
    assert given.constraint is not None
    assert given.constraint.param == "tools"
    options.choice = pb.TOOL_CHOICE_NONE
    assert tool_use(options) is None
    assert tool_use(pb.ToolOptions(choice=pb.TOOL_CHOICE_REQUIRED)) is None
    assert sampling_options(pb.SamplingOptions()).constraint is None


def test_results_of_calls_are_parts_of_the_users_turn() -> None:
    prompt = chat_prompt(
        [
            pb.Message(role=pb.ROLE_USER, content="a"),
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")]),
            pb.Message(role=pb.ROLE_TOOL, content="b", tool_call_id="c"),
        ]
    )
    assert prompt.messages is not None
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    assert '"name": "f"' in prompt.messages[2].content
