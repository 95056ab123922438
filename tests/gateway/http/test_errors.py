"""What a user is told, in OpenAI's form, whatever goes wrong."""

import json
from typing import Any

import httpx
import openai
import pytest
from gateway.http.toy import CARD, KEY, PIECES_BEFORE_LOSS, ToyCore, answer_text

MODEL = CARD.model_id
TEXT = {"type": "text", "text": "a"}


def chat(content: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


DEEP: dict[str, object] = {}
for _ in range(70):
    DEEP = {"items": DEEP}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, after a look at its form."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hello"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id is not None
    assert "gpt-9" in caught.value.message


def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [{}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}])
def test_only_a_bearer_key_counts(http: httpx.Client, header: dict[str, str]) -> None:
    answer = httpx.get(http.base_url.join("/v1/models"), headers=header)
    assert answer.status_code == 401
    assert error_of(answer)["type"] == "authentication_error"


def test_a_prompt_over_the_context_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="x" * 100)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 3),
        ("top_p", 0),
        ("top_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("max_completion_tokens", 10**30),
        ("n", 0),
        ("n", 9),
        ("seed", 2**64),
        ("seed", 10**100),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"256": 1}),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [256]),
        ("stop_token_ids", [-1]),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("top_logprobs", 21),
        ("top_logprobs", 2),
        ("logprobs", 1),
        ("messages", []),
        ("messages", "hello"),
        ("messages", None),
        ("model", ""),
        ("model", 5),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
        ("tools", [{"type": "function", "function": {"name": "no name"}}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 2),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": []}}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 129),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"enum": ["x" * 70_000]}}}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "no schema"}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": [1]}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": DEEP}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}),
        ("response_format", {"type": "regex"}),
        ("response_format", {"type": "regex", "regex": ""}),
        ("response_format", {"type": "regex", "regex": "x" * 70_000}),
        ("response_format", {"type": "grammar", "grammar": 5}),
        ("service_tier", "slow"),
        ("user", 5),
        ("metadata", {"a": 1}),
        ("prompt_cache_key", []),
        ("audio", {}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_a_bad_field_is_named(http: httpx.Client, field: str, value: object) -> None:
    answer = http.post("/v1/chat/completions", json=chat() | {field: value})
    error = error_of(answer)
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0].split(".")[0] in (field, field.replace("_completion", ""))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", 1]),
        ("prompt", [1, True]),
        ("prompt", [-1]),
        ("prompt", [2**31]),
        ("prompt", [256]),
        ("prompt", ["a"] * 9),
        ("echo", "yes"),
        ("max_tokens", 0),
        ("response_format", {"type": "regex"}),
        ("suffix", "end"),
        ("best_of", 2),
        ("logprobs", True),
        ("logprobs", 21),
    ],
)
def test_a_bad_field_of_completions_is_named(http: httpx.Client, field: str, value: object) -> None:
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "x", field: value})
    assert answer.status_code == 400
    assert error_of(answer)["param"].split(".")[0] == field


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "tool_call_id": "a"}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": "a"}, 5], "messages[1]"),
        ([{"role": "user", "content": [TEXT, {"type": "image_url"}]}], "messages[0].content[1].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "content": "a"}], "messages"),
    ],
)
def test_a_bad_message_is_named_to_the_part(http: httpx.Client, messages: list[object], param: str) -> None:
    answer = http.post("/v1/chat/completions", json=chat(messages=messages))
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_two_limits_that_differ_are_refused_and_equal_ones_are_not(http: httpx.Client) -> None:
    bad = http.post("/v1/chat/completions", json=chat(max_tokens=3, max_completion_tokens=4))
    assert error_of(bad)["message"] == "max_completion_tokens is 4 but max_tokens, its older name, is 3"
    assert http.post("/v1/chat/completions", json=chat(max_tokens=3, max_completion_tokens=3)).status_code == 200


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"nonsense", "not valid JSON"),
        (b"[1]", "must be a JSON object, not a list"),
        (b"null", "must be a JSON object, not null"),
        (b'{"model": "\xff"}', "not valid JSON in UTF-8"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b'{"temperature": -Infinity}', "not valid JSON"),
        (b"[" * 100_000, "recursion limit"),
    ],
)
def test_a_body_that_is_no_json_object_is_a_bad_request(http: httpx.Client, body: bytes, part: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/detokenize"):
        answer = http.post(path, content=body)
        assert answer.status_code == 400
        assert part in error_of(answer)["message"]


def test_a_number_beyond_all_floats_is_a_bad_request(http: httpx.Client) -> None:
    body = json.dumps(chat()).encode()[:-1] + b', "temperature": 1e999}'
    answer = http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "temperature"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_the_content_type_does_not_matter(http: httpx.Client, content_type: str) -> None:
    body = json.dumps(chat(max_tokens=1)).encode()
    answer = http.post("/v1/chat/completions", content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


def test_a_missing_field_is_said_to_be_required(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": MODEL})
    assert error_of(answer)["message"] == "messages is required"


def test_a_message_shows_the_value_but_never_all_of_a_long_one(http: httpx.Client) -> None:
    short = http.post("/v1/chat/completions", json=chat(max_tokens="5"))
    assert error_of(short)["message"] == 'max_tokens must be a valid integer, not "5"'
    long = http.post("/v1/chat/completions", json=chat(max_tokens="5" * 1000))
    assert len(error_of(long)["message"]) < 200


def test_an_unknown_path_is_not_found(http: httpx.Client) -> None:
    for path in ("/v1/nothing", "/v1/models/", "/healthz/", "/", "/v1/%2e%2e/healthz", "/v1/%ff%00"):
        answer = http.get(path)
        assert answer.status_code == 404
        assert error_of(answer)["code"] in ("not_found", "model_not_found")


def test_a_wrong_method_is_answered_with_the_right_ones(http: httpx.Client) -> None:
    answer = http.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert error_of(answer)["code"] == "method_not_allowed"


def test_unavailable_says_when_to_try_again(http: httpx.Client) -> None:
    for stream in (False, True):
        answer = http.post("/v1/chat/completions", json=chat("!unavailable", stream=stream))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert error_of(answer)["code"] == "unavailable"


def test_a_fault_of_ours_says_nothing_of_the_inside(http: httpx.Client) -> None:
    for content in ("!bug", "!late-bug"):
        answer = http.post("/v1/chat/completions", json=chat(content))
        assert answer.status_code == 500
        error = error_of(answer)
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in error["message"]


@pytest.mark.parametrize(
    ("content", "code"), [("!lost", "worker_lost"), ("!late-bug", "internal_error"), ("!short", "internal_error")]
)
def test_an_error_in_mid_stream_is_one_event_without_done(http: httpx.Client, content: str, code: str) -> None:
    answer = http.post("/v1/chat/completions", json=chat(content, stream=True))
    assert answer.status_code == 200
    *_, last, end = answer.text.split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert "[DONE]" not in answer.text
    assert "secret" not in answer.text


def test_openais_client_raises_what_happened_in_mid_stream(client: openai.OpenAI) -> None:
    text = ""
    with pytest.raises(openai.APIError, match="the worker died") as caught:
        for chunk in client.completions.create(model=MODEL, prompt="!lost", stream=True):
            text += chunk.choices[0].text
    assert caught.value.code == "worker_lost"
    assert text == answer_text("!lost", PIECES_BEFORE_LOSS)


def test_the_request_id_is_ours_and_the_clients_is_a_label(http: httpx.Client, core: ToyCore) -> None:
    headers = {"x-request-id": "mine-1"}
    answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 1}, headers=headers)
    assert answer.headers["x-client-request-id"] == "mine-1"
    assert answer.headers["x-request-id"] == core.answers[-1].request.request_id
    assert answer.headers["x-request-id"] != http.get("/healthz").headers["x-request-id"]
    odd = http.get("/healthz", headers={"x-request-id": "two words"})
    assert "x-client-request-id" not in odd.headers


def test_the_callers_trace_context_goes_to_the_core(http: httpx.Client, core: ToyCore) -> None:
    for sent in (f"00-{'a' * 32}-{'b' * 16}-01", "what the core will refuse"):
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
        http.post("/v1/completions", json=body, headers={"traceparent": sent})
        assert core.traceparents[-1] == sent
