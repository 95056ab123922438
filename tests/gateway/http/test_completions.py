"""Completions over HTTP, by OpenAI's own client."""

import openai
import pytest
from gateway.http.toy import CARD, ToyCore, answer_text

MODEL = CARD.model_id


def test_an_answer_has_text_a_reason_and_usage(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="once", max_tokens=4)
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (answer_text("once", 4), "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 4)


def test_a_stream_gives_the_same_text_piece_by_piece(client: openai.OpenAI) -> None:
    *chunks, last = client.completions.create(
        model=MODEL, prompt="once", max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert [chunk.choices[0].text for chunk in chunks] == [*answer_text("once", 4), ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 4 + ["length"]
    assert last.usage is not None
    assert last.usage.total_tokens == 8


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99], ["abc"], [[97, 98, 99]]])
def test_a_prompt_is_a_string_or_ids_or_a_list_with_one_of_them(
    client: openai.OpenAI, prompt: str | list[str] | list[int] | list[list[int]]
) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)
    assert answer.choices[0].text == answer_text("abc", 2)


def test_several_prompts_are_answered_in_order_n_in_a_row(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "bb"], max_tokens=2, n=2, seed=0)
    assert [choice.text for choice in answer.choices] == [
        answer_text("a", 2, seed=0),
        answer_text("a", 2, seed=1),
        answer_text("bb", 2, seed=2),
        answer_text("bb", 2, seed=3),
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 8)


def test_logprobs_are_parallel_lists_with_offsets(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="once", max_tokens=3, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    letters = answer_text("once", 3)
    assert logprobs.tokens == list(letters)
    assert logprobs.token_logprobs == [0.0, 0.0, 0.0]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs == [{letter: 0.0} for letter in letters]


def test_offsets_go_on_through_a_stream(client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt="once", max_tokens=3, logprobs=0, stream=True)
    found = [chunk.choices[0].logprobs for chunk in stream]
    assert [one.text_offset for one in found if one is not None] == [[0], [1], [2]]


def test_when_one_of_several_answers_is_refused_the_others_are_cancelled(client: openai.OpenAI, core: ToyCore) -> None:
    with pytest.raises(openai.InternalServerError, match="no room for a second answer"):
        client.completions.create(model=MODEL, prompt="!refuse-second", n=3)
    started = [answer for answer in core.answers if answer.prompt == b"!refuse-second"]
    assert all(answer.cancelled for answer in started)
