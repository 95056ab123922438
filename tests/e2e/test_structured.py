"""Structured answers, tools and echoed prompts by the real openai client, prefill apart from decode and not."""

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.stack import Running

from gemline.client import Client, Message

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
BY_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add_person", "description": "adds one", "parameters": PERSON}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(params=["split_stack", "colocated_stack"])
def stack(request: pytest.FixtureRequest) -> Running:
    running: Running = request.getfixturevalue(request.param)
    return running


def chat(stack: Running, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": stack.model, "messages": ASK, "max_tokens": 400, "seed": 5} | fields
    return stack.openai().chat.completions.create(**given)


def test_an_answer_is_json_of_its_schema_and_the_same_on_both_topologies(
    split_stack: Running, colocated_stack: Running
) -> None:
    for seed in range(4):
        answers = [chat(stack, response_format=BY_SCHEMA, seed=seed) for stack in (split_stack, colocated_stack)]
        contents = {answer.choices[0].message.content for answer in answers}
        assert len(contents) == 1
        assert {answer.choices[0].finish_reason for answer in answers} == {"stop"}
        jsonschema.validate(json.loads(contents.pop()), PERSON)


def test_a_streamed_answer_is_the_whole_one_and_n_of_them_are_all_valid(stack: Running) -> None:
    whole = chat(stack, response_format=BY_SCHEMA, n=3, logprobs=True, top_logprobs=2)
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content), PERSON)
        assert len(choice.logprobs.content) >= 3
    chunks = list(chat(stack, response_format=BY_SCHEMA, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content


def test_a_regex_and_a_grammar_are_followed_in_completions_too(stack: Running) -> None:
    for wanted in (
        {"type": "regex", "regex": "(yes|no)!"},
        {"type": "grammar", "grammar": 'start: ("yes" | "no") "!"'},
    ):
        answer = stack.openai().completions.create(
            model=stack.model, prompt="So?", max_tokens=20, extra_body={"response_format": wanted}
        )
        assert answer.choices[0].text in ("yes!", "no!")
        assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_cuts_an_answer_with_length_and_a_stop_string_with_stop(stack: Running) -> None:
    cut = chat(stack, response_format=BY_SCHEMA, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    stopped = chat(stack, response_format={"type": "json_object"}, stop=["{"])
    assert (stopped.choices[0].finish_reason, stopped.choices[0].message.content) == ("stop", "")


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "regex", "regex": "(ab"},
        {"type": "regex", "regex": "(a{1000}){1000}"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}},
        {"type": "grammar", "grammar": "start: s\ns: s"},
    ],
)
def test_a_constraint_that_cannot_be_read_is_its_own_requests_400(stack: Running, wanted: dict[str, Any]) -> None:
    neighbour = chat(stack, stream=True, max_tokens=60, extra_body={"ignore_eos": True})
    next(iter(neighbour))
    with pytest.raises(openai.BadRequestError) as caught:
        chat(stack, response_format=wanted)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "response_format")
    assert list(neighbour)[-1].choices[0].finish_reason == "length"


def test_a_function_that_must_be_called_is_called(stack: Running) -> None:
    answer = chat(stack, tools=TOOLS, tool_choice="required", max_tokens=1400)
    message = answer.choices[0].message
    assert (answer.choices[0].finish_reason, message.content) == ("tool_calls", None)
    for call in message.tool_calls:
        assert call.id.startswith("call_")
        schema = PERSON if call.function.name == "add_person" else {"maxProperties": 0}
        jsonschema.validate(json.loads(call.function.arguments), schema)
    [call] = (
        chat(stack, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}})
        .choices[0]
        .message.tool_calls
    )
    assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})


def test_streamed_calls_are_those_of_the_whole_answer(stack: Running) -> None:
    given: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "required",
        "max_tokens": 1400,
        "parallel_tool_calls": False,
    }
    [expected] = chat(stack, **given).choices[0].message.tool_calls
    name = arguments = ""
    reasons = []
    for chunk in chat(stack, stream=True, **given):
        assert not chunk.choices[0].delta.content
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.index == 0
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert (name, arguments) == (expected.function.name, expected.function.arguments)
    assert reasons[-1] == "tool_calls"
    assert not any(reasons[:-1])


def test_what_a_call_gave_goes_back_to_the_model(stack: Running) -> None:
    answer = chat(stack, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}})
    [call] = answer.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "nine"}
    messages = [*ASK, answer.choices[0].message.model_dump(), result]
    final = chat(stack, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=5)
    assert final.choices[0].message.content is not None
    assert final.usage.prompt_tokens > chat(stack, max_tokens=1).usage.prompt_tokens


def test_tools_that_need_not_be_called_leave_text_free(stack: Running) -> None:
    answer = chat(stack, tools=TOOLS, max_tokens=12)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.tool_calls is None


def scored(stack: Running, prompt: object, **fields: Any) -> Any:
    body = {"model": stack.model, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    headers = {"authorization": f"Bearer {stack.openai().api_key}"}
    answer = httpx.post(f"{stack.openai().base_url}completions", json=body | fields, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_echoed_prompt_has_the_log_probabilities_of_its_own_tokens(stack: Running) -> None:
    tokens = stack.openai().post(
        "/tokenize", body={"model": stack.model, "prompt": "the people of the"}, cast_to=object
    )
    with_bos = tokens["tokens"]  # type: ignore[index]
    given = scored(stack, with_bos)["choices"][0]["logprobs"]
    ours = scored(stack, with_bos[1:])["choices"][0]["logprobs"]
    assert given["token_logprobs"][0] is None
    assert given["top_logprobs"][0] is None
    assert given["token_logprobs"][1:] == ours["token_logprobs"]
    assert len(ours["tokens"]) == len(with_bos)  # without <bos>, with one that was generated
    for position in range(1, len(with_bos)):  # each as if it were the one that is generated
        next_one = scored(stack, with_bos[:position], echo=False, logit_bias={str(with_bos[position]): 100})
        [expected] = next_one["choices"][0]["logprobs"]["token_logprobs"]
        assert given["token_logprobs"][position] == pytest.approx(expected, abs=1e-3)


def test_only_the_prompt_is_echoed_where_nothing_is_to_be_generated(stack: Running) -> None:
    text = "the people of the"
    answer = scored(stack, text, max_tokens=0)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert "".join(choice["logprobs"]["tokens"]) == text
    assert choice["logprobs"]["text_offset"][0] == 0
    assert answer["usage"]["completion_tokens"] == 0
    plain = scored(stack, text, logprobs=None, max_tokens=4)["choices"][0]
    assert plain["text"].startswith(text)
    assert plain["logprobs"] is None


def test_several_prompts_are_scored_at_once_and_each_as_if_alone(stack: Running) -> None:
    prompts = [[300 + 3 * i + j for j in range(5 + 9 * i)] for i in range(6)]
    together = scored(stack, prompts)["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        alone = scored(stack, prompt)["choices"][0]["logprobs"]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone["token_logprobs"], abs=1e-4)
        assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1


def test_the_sdk_offers_the_same(stack: Running) -> None:
    with Client(stack.ready["grpc"], api_key=stack.openai().api_key) as client:
        answer = client.chat([Message("user", "Who?")], response_format=BY_SCHEMA, max_tokens=400, seed=1)
        jsonschema.validate(json.loads(answer.text), PERSON)
        called = client.chat([Message("user", "Who?")], tools=TOOLS, tool_choice="required", max_tokens=1400, seed=1)
        assert called.finish_reason == "tool_calls"
        assert {call.name for call in called.tool_calls} <= {"add_person", "now"}
        with client.chat_stream(
            [Message("user", "Who?")], tools=TOOLS, tool_choice="required", max_tokens=1400, seed=1
        ) as stream:
            assert not "".join(piece.text for piece in stream)
        assert [(call.name, call.arguments) for call in stream.tool_calls] == [
            (call.name, call.arguments) for call in called.tool_calls
        ]
        result = Message("tool", "done", tool_call_id=called.tool_calls[0].id)
        again = client.chat([Message("user", "Who?"), called.message, result], max_tokens=3)
        assert again.finish_reason in ("stop", "length")
        session = client.sessions.create()
        turn = session.chat("Who?", tools=TOOLS, tool_choice="required", max_tokens=1400, seed=1)
        assert turn.finish_reason == "tool_calls"
        assert session.chat([Message("tool", "done")], max_tokens=3).finish_reason in ("stop", "length")
        assert client.generate("So?", response_format={"type": "regex", "regex": "(yes|no)"}).text in ("yes", "no")
