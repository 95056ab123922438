"""Functions that may be called: how they are told, how calls are read back, and what a grammar of them lets through."""

import itertools
import json
from collections.abc import Sequence

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.grammars import END_IDS, VOCAB_SIZE, demo_tokenizer, drawn

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.gateway.constraints import json_schema
from gemline.gateway.requests import CallDelta, Message
from gemline.gateway.tool_calls import CallReader
from gemline.gateway.tools import Said, SaidCall, Tool, ToolUse, told_messages, tools_constraint, tools_prompt
from gemline.grammar.grammars import Grammars

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER, NOW = Tool("get_weather", "of a city", CITY), Tool("now")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.tuples(st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True), st.dictionaries(st.text(), json_values)),
    min_size=1,
)


def written(said: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f'<tool_call>{{"name": "{name}", "arguments": {text}}}</tool_call>' for name, text in said)


def read(text: str, cuts: Sequence[int]) -> tuple[str, list[tuple[str, str]]]:
    """What a reader makes of a text that comes in pieces: text, and names with arguments."""
    reader, shown, deltas = CallReader(), "", list[CallDelta]()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        part, found = reader.push(text[start:stop])
        shown += part
        deltas += found
    found_calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        name, arguments = found_calls.get(delta.index, ("", ""))
        found_calls[delta.index] = (name + delta.name, arguments + delta.arguments)
    return shown + reader.finish(), list(found_calls.values())


@given(said=calls, cuts=st.lists(st.integers(0, 400), max_size=30), ascii_only=st.booleans())
def test_calls_are_read_as_they_were_written_however_they_are_cut(
    said: list[tuple[str, object]], cuts: list[int], ascii_only: bool
) -> None:
    texts = [(name, json.dumps(arguments, ensure_ascii=ascii_only)) for name, arguments in said]
    assert read(written(texts), cuts) == ("", texts)


@given(text=st.text(alphabet='<tol_ca>x{"', max_size=30), cuts=st.lists(st.integers(0, 30), max_size=8))
def test_what_does_not_begin_like_a_call_is_text(text: str, cuts: list[int]) -> None:
    if not text.startswith("<tool_call>"):
        assert read(text, cuts) == (text, [])


def test_a_call_that_is_cut_short_has_what_came() -> None:
    shown, found = read('<tool_call>{"name": "now", "arguments": {"a": "}', [3, 20])
    assert (shown, found) == ("", [("now", '{"a": "}')])


@pytest.mark.parametrize(
    "use",
    [
        ToolUse((WEATHER, NOW), "required"),
        ToolUse((WEATHER, NOW), name="now"),
        ToolUse((WEATHER, NOW), "required", parallel=False),
    ],
)
async def test_whatever_is_drawn_are_calls_of_functions_that_may_be_called(use: ToolUse) -> None:
    grammars = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS)
    for seed in range(12):
        token_ids = drawn(await grammars.matcher(tools_constraint(use)), seed, max_tokens=3000)
        assert token_ids[-1] in END_IDS
        shown, found = read(demo_tokenizer().decode(token_ids), [5, 50])
        assert shown == ""
        assert 1 <= len(found) <= (8 if use.parallel and not use.name else 1)
        for name, arguments in found:
            assert name in ((use.name,) if use.name else ("get_weather", "now"))
            jsonschema.validate(json.loads(arguments), CITY if name == "get_weather" else {"maxProperties": 0})
    grammars.close()


async def test_where_no_call_is_needed_text_is_free_and_a_json_answer_is_held_to_its_schema() -> None:
    grammars = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS)
    free = await grammars.matcher(
        tools_constraint(ToolUse((NOW,))), demo_tokenizer().encode_text("It is 9 <tool_call>")
    )
    assert free.mask()
    for seed in range(8):
        schema = json_schema({"type": "integer", "minimum": 0, "maximum": 9})
        token_ids = drawn(await grammars.matcher(tools_constraint(ToolUse((NOW,)), schema)), seed, max_tokens=3000)
        shown, found = read(demo_tokenizer().decode(token_ids), [])
        assert found or 0 <= json.loads(shown) <= 9
    grammars.close()


def test_functions_are_told_once_before_the_users_first_words() -> None:
    use = ToolUse((WEATHER, NOW))
    system, user, model, last = told_messages(
        [Said("system", "Be brief."), Said("user", "Hi"), Said("assistant", "Hello"), Said("user", "Rain?")], use
    )
    assert (system, model, last) == (
        Message("system", "Be brief."),
        Message("assistant", "Hello"),
        Message("user", "Rain?"),
    )
    assert user.content == tools_prompt(use) + "\n\nHi"
    for tool in use.tools:
        assert json.dumps(tool.name) in user.content


def test_calls_and_what_they_gave_are_turns_of_the_model_and_of_the_user() -> None:
    said = [
        Said("user", "Rain?"),
        Said("assistant", "", (SaidCall("get_weather", '{"city": "Rom"}', "c1"), SaidCall("now", "{}", "c2"))),
        Said("tool", "sun", call_id="c1"),
        Said("tool", "9:00", call_id="c2"),
        Said("user", "So?"),
    ]
    user, model, result = told_messages(said, None)
    assert user.content == "Rain?"
    assert model == Message("assistant", written([("get_weather", '{"city": "Rom"}'), ("now", "{}")]))
    assert result.role == "user"
    assert result.content.splitlines() == [
        '<tool_response>{"name": "get_weather", "content": "sun"}</tool_response>',
        '<tool_response>{"name": "now", "content": "9:00"}</tool_response>',
        "So?",
    ]


def test_two_turns_of_a_user_without_a_result_between_them_are_not_joined() -> None:
    assert len(told_messages([Said("user", "a"), Said("user", "b")], None)) == 2


def test_an_answer_in_a_grammar_cannot_stand_beside_tools() -> None:
    with pytest.raises(InvalidRequest, match="response_format of type regex"):
        tools_constraint(ToolUse((NOW,)), Constraint(Syntax.REGEX, "a"))
