"""What a user sets becomes what an engine needs, or is refused by name."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.hand_worker import CARD

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import ContextLengthExceeded, InvalidRequest
from gemline.gateway.requests import SamplingOptions
from gemline.gateway.sampling import check_sampling, check_token_ids, resolve_sampling

PROMPT = 10


def test_nothing_set_gives_the_defaults() -> None:
    params = resolve_sampling(SamplingOptions(), CARD, PROMPT)
    assert params.max_tokens == CARD.context_length - PROMPT
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert params.stop_token_ids == frozenset(CARD.stop_token_ids)
    assert params.num_logprobs is None
    assert not params.logit_bias


def test_without_a_seed_every_request_gets_its_own() -> None:
    seeds = {resolve_sampling(SamplingOptions(), CARD, PROMPT).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_negative_seed_is_one_of_the_64_bit_seeds() -> None:
    assert resolve_sampling(SamplingOptions(seed=-1), CARD, PROMPT).seed == 2**64 - 1
    assert resolve_sampling(SamplingOptions(seed=0), CARD, PROMPT).seed == 0


def test_stop_ids_join_the_models_own_unless_those_are_ignored() -> None:
    assert resolve_sampling(SamplingOptions(stop_token_ids=(9,)), CARD, PROMPT).stop_token_ids == {1, 107, 9}
    ignored = SamplingOptions(stop_token_ids=(9,), ignore_eos=True)
    assert resolve_sampling(ignored, CARD, PROMPT).stop_token_ids == {9}


def test_a_temperature_too_low_to_divide_by_is_greedy() -> None:
    assert resolve_sampling(SamplingOptions(temperature=1e-9), CARD, PROMPT).greedy
    assert not resolve_sampling(SamplingOptions(temperature=1e-3), CARD, PROMPT).greedy


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 1},
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": 0},
        {"top_k": 2**31 - 1},
        {"top_p": 1e-30},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
        {"repetition_penalty": 0.001},
        {"repetition_penalty": 1000.0},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 2.0},
        {"logprobs": 0},
        {"logprobs": 20},
        {"stop": ("x",) * 16},
        {"stop": ("x" * 1024,)},
        {"stop_token_ids": tuple(range(64))},
        {"logit_bias": {0: -100.0, CARD.vocab_size - 1: 100.0}},
    ],
)
def test_the_ends_of_every_range_are_in_it(options: dict[str, Any]) -> None:
    check_sampling(SamplingOptions(**options), CARD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": -5}, "max_tokens must be at least 1, not -5"),
        ({"temperature": -0.1}, "temperature must be from 0 to 2, not -0.1"),
        ({"temperature": 2.1}, "temperature must be from 0 to 2, not 2.1"),
        ({"temperature": math.nan}, "temperature must be from 0 to 2, not nan"),
        ({"temperature": math.inf}, "temperature must be from 0 to 2, not inf"),
        ({"top_k": -1}, "top_k must be from 0 to"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1, not 1.01"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
        ({"min_p": -0.01}, "min_p must be from 0 to 1, not -0.01"),
        ({"seed": 2**64}, "seed must be from"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 0.001 to 1000, not 0.0"),
        ({"presence_penalty": 2.5}, "presence_penalty must be from -2 to 2, not 2.5"),
        ({"frequency_penalty": -2.5}, "frequency_penalty must be from -2 to 2, not -2.5"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, not 21"),
        ({"stop": ("x",) * 17}, "stop has 17 entries; at most 16 are taken"),
        ({"stop": ("",)}, "stop: a string must have from 1 to 1024 characters, not 0"),
        ({"stop": ("x" * 1025,)}, "stop: a string must have from 1 to 1024 characters, not 1025"),
        ({"stop_token_ids": tuple(range(65))}, "stop_token_ids has 65 entries; at most 64 are taken"),
        ({"stop_token_ids": (1024,)}, "stop_token_ids: token id 1024 is not in the vocabulary of 1024 tokens"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: token id -1 is not in the vocabulary of 1024 tokens"),
        ({"logit_bias": {1: 101.0}}, "logit_bias must be from -100 to 100, not 101.0"),
        ({"logit_bias": {1: math.nan}}, "logit_bias must be from -100 to 100, not nan"),
    ],
)
def test_what_is_out_of_range_is_refused_with_field_value_and_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(SamplingOptions(**options), CARD)
    assert message in caught.value.message
    assert caught.value.param == next(iter(options))


def test_too_many_biases_are_refused() -> None:
    card = replace(CARD, vocab_size=5000)
    check_sampling(SamplingOptions(logit_bias=dict.fromkeys(range(1024), 1.0)), card)
    with pytest.raises(InvalidRequest, match="logit_bias has 1025 entries"):
        check_sampling(SamplingOptions(logit_bias=dict.fromkeys(range(1025), 1.0)), card)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        resolve_sampling(SamplingOptions(), CARD, 256, prompt_param="messages")
    assert "256 tokens, but tiny has a context of 256 tokens" in caught.value.message
    assert caught.value.param == "messages"
    assert resolve_sampling(SamplingOptions(), CARD, 255).max_tokens == 1


def test_max_tokens_beyond_what_is_left_is_refused_with_all_numbers() -> None:
    assert resolve_sampling(SamplingOptions(max_tokens=246), CARD, PROMPT).max_tokens == 246
    with pytest.raises(ContextLengthExceeded) as caught:
        resolve_sampling(SamplingOptions(max_tokens=247), CARD, PROMPT)
    assert "10 tokens and max_tokens is 247: 257 in all" in caught.value.message
    assert "context of 256" in caught.value.message
    assert caught.value.param == "max_tokens"


def test_token_ids_are_those_of_the_vocabulary() -> None:
    check_token_ids("prompt", (0, 1023), 1024)
    for token_id in (-1, 1024):
        with pytest.raises(InvalidRequest, match=f"prompt: token id {token_id} is not in the vocabulary"):
            check_token_ids("prompt", (0, token_id), 1024)


@given(
    value=st.floats(width=64),
    name=st.sampled_from(
        ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]
    ),
)
def test_whatever_is_accepted_is_finite_and_whatever_is_not_is_named(value: float, name: str) -> None:
    options = replace(SamplingOptions(), **{name: value})  # type: ignore[arg-type]
    try:
        check_sampling(options, CARD)
    except InvalidRequest as error:
        assert error.param == name
    else:
        assert math.isfinite(getattr(resolve_sampling(options, CARD, PROMPT), name))


def test_a_constrained_answer_may_not_go_on_past_its_end() -> None:
    constraint = Constraint(Syntax.REGEX, "a")
    check_sampling(SamplingOptions(constraint=constraint), CARD)
    assert resolve_sampling(SamplingOptions(constraint=constraint), CARD, PROMPT).constraint == constraint
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(SamplingOptions(constraint=constraint, ignore_eos=True), CARD)
    assert caught.value.param == "ignore_eos"


def test_nothing_need_be_generated_where_the_prompt_is_echoed() -> None:
    echoed = SamplingOptions(max_tokens=0, echo=True, logprobs=1)
    check_sampling(echoed, CARD)
    params = resolve_sampling(echoed, CARD, PROMPT)
    assert (params.max_tokens, params.prompt_logprobs) == (1, True)
    assert not resolve_sampling(replace(echoed, logprobs=None), CARD, PROMPT).prompt_logprobs
    with pytest.raises(InvalidRequest):
        check_sampling(replace(echoed, echo=False), CARD)
