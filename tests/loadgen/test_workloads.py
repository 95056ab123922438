"""Workloads repeat with their seed and have the sizes asked for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.bench.workloads import BOS_ID, FIRST_ID, Span, WorkloadOptions, make, plan
from gemline.errors import ConfigurationError

SPAN = Span(20, 30)


@given(least=st.integers(1, 40), more=st.integers(0, 40), seed=st.integers(), as_ids=st.booleans())
def test_random_prompts_have_the_sizes_asked(least: int, more: int, seed: int, as_ids: bool) -> None:
    made = make(WorkloadOptions("random", Span(least, least + more), num_requests=5, as_ids=as_ids, seed=seed))
    assert len(made) == 5
    assert all(len(turns) == 1 and least <= turns[0].num_tokens <= least + more for turns in made)


@pytest.mark.parametrize("kind", ["random", "session", "shared-prefix"])
@pytest.mark.parametrize("text", [True, False])
def test_the_seed_alone_decides_the_load(kind: str, text: bool) -> None:
    first, again, other = (make(plan(kind, "20-30", as_text=text, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_ids_begin_with_bos_and_stay_in_the_vocabulary() -> None:
    for (ask,) in make(WorkloadOptions("random", SPAN, vocab_size=FIRST_ID + 2)):
        assert ask.token_ids[0] == BOS_ID
        assert set(ask.token_ids[1:]) <= {FIRST_ID, FIRST_ID + 1}


def test_random_prompts_share_no_beginning() -> None:
    assert len({ask.token_ids[:10] for (ask,) in make(WorkloadOptions("random", SPAN))}) == 32


@pytest.mark.parametrize("as_ids", [True, False])
def test_a_shared_prefix_is_shared_and_what_follows_is_not(as_ids: bool) -> None:
    options = WorkloadOptions("shared-prefix", SPAN, num_requests=6, num_prefix_tokens=50, as_ids=as_ids)
    prompts = [list(ask.token_ids) or ask.text.split() for (ask,) in make(options)]
    assert all(70 <= len(prompt) <= 80 for prompt in prompts)
    assert all(prompt[:50] == prompts[0][:50] for prompt in prompts)
    assert len({tuple(prompt[50:60]) for prompt in prompts}) == 6


def test_sessions_share_a_prefix_and_then_go_their_own_ways() -> None:
    options = WorkloadOptions("session", SPAN, num_sessions=3, num_turns=4, num_prefix_tokens=50)
    made = make(options)
    assert [len(turns) for turns in made] == [4, 4, 4]
    assert all(turns[0].token_ids[:50] == made[0][0].token_ids[:50] for turns in made)
    assert all(70 <= turns[0].num_tokens <= 80 for turns in made)
    assert all(20 <= ask.num_tokens <= 30 and BOS_ID not in ask.token_ids for turns in made for ask in turns[1:])


@pytest.mark.parametrize("text", ["", "0", "5-4", "-3", "3-", "a-b", "1.5", "1-2-3"])
def test_a_bad_range_names_its_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--prompt-tokens"):
        Span.parse("--prompt-tokens", text)


def test_one_number_is_a_range_of_one() -> None:
    assert Span.parse("--prompt-tokens", "512") == (512, 512)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("chaos", {}, "--workload"),
        ("session", {"num_requests": 3}, "--num-requests"),
        ("random", {"num_turns": 3}, "--turns"),
        ("random", {"num_sessions": 3}, "--sessions"),
        ("random", {"num_prefix_tokens": 3}, "--prefix-tokens"),
        ("random", {"num_requests": 0}, "--num-requests"),
        ("session", {"num_turns": 0}, "--turns"),
        ("shared-prefix", {"num_prefix_tokens": 0}, "--prefix-tokens"),
        ("session", {"num_prefix_tokens": -1}, "--prefix-tokens"),
        ("random", {"vocab_size": 7}, "--vocab-size"),
    ],
)
def test_an_option_that_cannot_be_is_named(kind: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        plan(kind, "5", **options)


def test_chat_sends_no_ids() -> None:
    with pytest.raises(ConfigurationError, match="--ids"):
        plan("random", "5", as_text=False, chat=True)
