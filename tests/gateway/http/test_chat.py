"""Chat over HTTP, by OpenAI's own client."""

import httpx
import openai
import pytest
from gateway.http.toy import CARD, ToyCore, answer_text
from openai.types.chat import ChatCompletionMessageParam

from gemline.gateway.requests import Message

MODEL = CARD.model_id
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


def test_an_answer_has_text_a_reason_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", answer_text("hello", 4))
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == answer_text("hello", 4)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_gives_usage_last_when_it_is_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    *others, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 4)
    assert all(chunk.usage is None for chunk in others)


def test_a_stream_is_server_sent_events_that_end_in_done(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 2, "stream": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: openai.OpenAI) -> None:
    letters = answer_text("hello", 8)
    for stop in (letters[3:5], [letters[3:5], "@"]):
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, stop=stop)
        assert answer.choices[0].message.content == letters[:3]
        assert answer.choices[0].finish_reason == "stop"


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3, n=4, seed=7)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [answer_text("hello", 3, seed=7 + index) for index in range(4)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)


def test_n_answers_stream_side_by_side(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3, n=3, seed=1, stream=True, stream_options={"include_usage": True}
    )
    texts, roles, reasons, usages = ["", "", ""], [0, 0, 0], [0, 0, 0], []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
            reasons[choice.index] += choice.finish_reason is not None
        usages.append(chunk.usage)
    assert texts == [answer_text("hello", 3, seed=1 + index) for index in range(3)]
    assert roles == reasons == [1, 1, 1]
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == 9


@pytest.mark.parametrize(("seed", "second"), [(-1, 0), (2**64 - 1, 0), (-(2**63), 2**63 + 1)])
def test_seeds_count_on_in_64_bits(client: openai.OpenAI, core: ToyCore, seed: int, second: int) -> None:
    client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, n=2, seed=seed)
    assert [answer.request.sampling.seed for answer in core.answers[-2:]] == [seed % 2**64, second]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_for_each_token_with_the_likeliest(http: httpx.Client, stream: bool) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "stream": stream}
    answer = http.post("/v1/chat/completions", json=body)
    if stream:
        events = [httpx.Response(200, text=event[6:]).json() for event in answer.text.split("\n\n")[:-2]]
        found = [event["choices"][0]["logprobs"] for event in events]
        positions = [position for one in found if one for position in one["content"]]
    else:
        positions = answer.json()["choices"][0]["logprobs"]["content"]
    assert [position["token"] for position in positions] == list(answer_text("hello", 3))
    first = positions[0]["token"]
    assert positions[0] == {
        "token": first,
        "logprob": 0.0,
        "bytes": [ord(first)],
        "top_logprobs": [
            {"token": first, "logprob": 0.0, "bytes": [ord(first)]},
            {"token": "_", "logprob": -0.5, "bytes": [ord("_")]},
        ],
    }


def test_logprobs_are_null_unless_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, logprobs=False)
    assert answer.choices[0].logprobs is None


def test_text_parts_are_put_together_as_they_are(client: openai.OpenAI, core: ToyCore) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
        max_tokens=1,
    )
    assert core.answers[-1].request.prompt.messages == (Message("system", "be brief"), Message("user", "hello"))


def test_every_sampling_field_reaches_the_core(client: openai.OpenAI, core: ToyCore) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_completion_tokens=2,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": 3},
        extra_body={
            "top_k": 4,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
    )
    sampling = core.answers[-1].request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (4, 0.05, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)
    assert (sampling.logit_bias, sampling.stop_token_ids, sampling.ignore_eos) == ({5: 3}, (9,), True)


def test_harmless_fields_are_passed_over(http: httpx.Client) -> None:
    harmless = {
        "user": "someone",
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "n": None,
        "stop": None,
        "a field of next year": 1,
    }
    answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "max_tokens": 1, **harmless})
    assert answer.status_code == 200


def test_a_prompt_cache_key_goes_to_the_core(http: httpx.Client, core: ToyCore) -> None:
    for fields, key in (({}, ""), ({"prompt_cache_key": None}, ""), ({"prompt_cache_key": "shop"}, "shop")):
        http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "max_tokens": 1, **fields})
        assert core.answers[-1].request.cache_key == key


@pytest.mark.parametrize(
    ("sent", "timeout_s"), [("2.5", 2.5), ("600", 600.0), ("0", None), ("-1", None), ("nan", None), ("soon", None)]
)
def test_a_clients_read_timeout_is_its_patience(
    http: httpx.Client, core: ToyCore, sent: str, timeout_s: float | None
) -> None:
    body = {"model": MODEL, "messages": HELLO}
    http.post("/v1/chat/completions", json=body, headers={"x-stainless-read-timeout": sent})
    assert core.answers[-1].request.timeout_s == timeout_s
