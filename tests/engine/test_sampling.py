"""Sampling against a plain reading of its rules in Python, and rule by rule."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gemline.engine.draw import uniform
from gemline.engine.history import History
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import Sampled, SampleRow, sample

GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
WARM = SamplingParams(max_tokens=1)
EDGE = 1e-4  # float32 in the code, float64 here: examples this near to a boundary say nothing


def one(logits: list[float], row: SampleRow) -> Sampled:
    (sampled,) = sample(torch.tensor([logits]), [row])
    assert sampled is not None
    return sampled


def drawn(logits: list[float], params: SamplingParams, num_draws: int = 300) -> set[int]:
    rows = [SampleRow(params, position) for position in range(num_draws)]
    sampled = sample(torch.tensor([logits] * num_draws), rows)
    return {choice.token_id for choice in sampled if choice is not None}


def adjusted(logits: list[float], row: SampleRow) -> list[float]:
    params, seen = row.params, dict(zip(row.history.token_ids, row.history.answer_counts, strict=True))
    result = []
    for token_id, raw in enumerate(logits):
        value = raw + params.logit_bias.get(token_id, 0.0)
        if token_id in seen:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        if seen.get(token_id):
            value -= params.presence_penalty + params.frequency_penalty * seen[token_id]
        result.append(value)
    return result


def weights_left(values: list[float], params: SamplingParams) -> list[float]:
    """The weight of each token, 0 where a rule excludes it."""
    weights = [math.exp((value - max(values)) / params.temperature) for value in values]
    order = sorted(range(len(values)), key=lambda token_id: (-weights[token_id], token_id))
    assume(all(abs(weight - params.min_p) > EDGE or params.min_p == 0 for weight in weights))
    order = [token_id for token_id in order if weights[token_id] >= params.min_p][: params.top_k or None]
    total, before, kept = sum(weights[token_id] for token_id in order), 0.0, list[int]()
    for token_id in order:
        assume(params.top_p == 1.0 or abs(before / total - params.top_p) > EDGE)
        if params.top_p == 1.0 or before < params.top_p * total:
            kept.append(token_id)
        before += weights[token_id]
    return [weight if token_id in kept else 0.0 for token_id, weight in enumerate(weights)]


@st.composite
def rows(draw: st.DrawFn, vocab_size: int) -> SampleRow:
    ids = st.integers(0, vocab_size - 1)
    params = SamplingParams(
        max_tokens=1,
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        top_k=draw(st.integers(0, vocab_size + 2)),
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.01, 1.0))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.01, 1.0))),
        seed=draw(st.integers(0, 2**64 - 1)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.4])),
        logit_bias=draw(st.dictionaries(ids, st.sampled_from([-100.0, -1.0, 2.0]), max_size=3)),
        num_logprobs=draw(st.one_of(st.none(), st.integers(0, vocab_size + 1))),
    )
    history = History(draw(st.lists(ids, max_size=5)), draw(st.lists(ids, max_size=6)))
    return SampleRow(params, draw(st.integers(0, 10_000)), history)


@settings(max_examples=150)
@given(data=st.data(), vocab_size=st.integers(1, 12), num_rows=st.integers(1, 5))
def test_every_row_of_a_batch_is_chosen_by_the_rules(data: st.DataObject, vocab_size: int, num_rows: int) -> None:
    levels = st.lists(st.sampled_from([-6.0, -1.0, 0.0, 0.25, 3.0, 3.5]), min_size=vocab_size, max_size=vocab_size)
    logits = [data.draw(levels) for _ in range(num_rows)]
    batch = [data.draw(rows(vocab_size)) for _ in range(num_rows)]
    logits_BV = torch.tensor(logits)
    sampled = sample(logits_BV, batch)
    assert torch.equal(logits_BV, torch.tensor(logits))
    for raw, row, choice in zip(logits, batch, sampled, strict=True):
        assert choice is not None
        values = adjusted(raw, row)
        if row.params.greedy:
            assert values[choice.token_id] >= max(values) - EDGE
            continue
        weights = weights_left(values, row.params)
        target = uniform(row.params.seed, row.position) * sum(weights)
        start = sum(weights[: choice.token_id])
        assert weights[choice.token_id] > 0
        assert start - EDGE <= target <= start + weights[choice.token_id] + EDGE


def test_of_equally_likely_tokens_greedy_takes_the_lowest_id_and_so_does_top_k_1() -> None:
    logits = [0.0, 2.0, 1.0, 2.0, 2.0]
    assert one(logits, SampleRow(GREEDY, 3)).token_id == 1
    assert drawn(logits, replace(WARM, top_k=1)) == {1}
    assert drawn(logits, replace(WARM, top_k=2)) == {1, 3}
    assert drawn(logits, replace(WARM, top_p=0.01)) == {1}


def test_a_temperature_near_zero_is_greedy() -> None:
    assert drawn([1.0, 1.0 + 1e-6, 0.0], replace(WARM, temperature=1e-300)) == {1}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = [math.log(8), math.log(4), math.log(1)]
    assert drawn(logits, replace(WARM, min_p=0.45)) == {0, 1}
    assert drawn(logits, replace(WARM, min_p=0.6)) == {0}
    assert drawn([0.0, 2.0, 2.0], replace(WARM, min_p=1.0)) == {1, 2}


def test_top_p_is_a_share_of_what_top_k_leaves() -> None:
    logits = [math.log(4), math.log(3), math.log(3), math.log(90)]
    assert drawn(logits, replace(WARM, top_k=2, top_p=0.95)) == {3}
    assert drawn(logits, replace(WARM, top_k=2, top_p=0.96)) == {0, 3}


def test_draws_follow_the_distribution() -> None:
    shares = [0.5, 0.3, 0.15, 0.05]
    num_draws = 4000
    logits_BV = torch.tensor([[math.log(share) for share in shares]] * num_draws)
    sampled = sample(logits_BV, [SampleRow(replace(WARM, seed=7), position) for position in range(num_draws)])
    counts = Counter(choice.token_id for choice in sampled if choice is not None)
    # Chi-square with 3 degrees of freedom: over 16.3 once in a thousand seeds; this one is fixed.
    assert sum((counts[i] - num_draws * s) ** 2 / (num_draws * s) for i, s in enumerate(shares)) < 16.3


@given(num_before=st.integers(0, 5), num_after=st.integers(0, 5), position=st.integers(0, 500))
def test_a_draw_does_not_depend_on_the_rest_of_the_batch(num_before: int, num_after: int, position: int) -> None:
    generator = torch.Generator().manual_seed(position)
    logits_BV = torch.randn((num_before + 1 + num_after, 50), generator=generator)
    params = replace(WARM, seed=99, top_p=0.9, num_logprobs=3)
    batch = [SampleRow(replace(WARM, top_k=7), 1)] * len(logits_BV)
    batch[num_before] = SampleRow(params, position)
    alone = sample(logits_BV[num_before : num_before + 1], [batch[num_before]])
    assert sample(logits_BV, batch)[num_before] == alone[0]


def test_top_p_looks_beyond_the_thousand_likeliest_where_they_do_not_suffice() -> None:
    flat = torch.zeros((2, 5000))
    rows = [SampleRow(replace(WARM, top_p=0.9, seed=seed), 0) for seed in (1, 2)]
    assert [choice.token_id for choice in sample(flat, rows) if choice] == [
        int(uniform(seed, 0) * 4500) for seed in (1, 2)
    ]


def test_a_batch_larger_than_is_sampled_at_once_is_sampled_whole() -> None:
    vocab_size = 2**21
    logits_BV = torch.full((5, vocab_size), -10.0)
    logits_BV[torch.arange(5), torch.arange(5) * 11] = 20.0
    sampled = sample(logits_BV, [SampleRow(WARM, position) for position in range(5)])
    assert [choice.token_id for choice in sampled if choice] == [0, 11, 22, 33, 44]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, WARM])
def test_a_row_without_numbers_fails_alone(bad: float, params: SamplingParams) -> None:
    logits_BV = torch.tensor([[0.0, 1.0], [bad, 0.0], [5.0, 1.0]])
    sampled = sample(logits_BV, [SampleRow(params, 0)] * 3)
    assert [choice is None for choice in sampled] == [False, True, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_penalties_overflow_fails_alone(temperature: float) -> None:
    wild = SampleRow(SamplingParams(1, temperature, repetition_penalty=1e-9), 0, History([1]))
    tame = SampleRow(SamplingParams(1, temperature, top_k=1), 0)
    sampled = sample(torch.tensor([[1.0, 1e30], [0.0, 1.0]]), [wild, tame])
    assert sampled == [None, Sampled(1, None)]


def test_a_row_that_excludes_everything_fails_alone() -> None:
    logits_BV = torch.tensor([[-math.inf, -math.inf], [-math.inf, 0.0]])
    assert sample(logits_BV, [SampleRow(WARM, 0)] * 2) == [None, Sampled(1, None)]


def test_logprobs_are_the_models_own_whatever_was_done_to_choose() -> None:
    logits = [1.0, 3.0, 2.0, -1.0]
    params = replace(GREEDY, logit_bias={3: 100.0}, num_logprobs=2)
    sampled = one(logits, SampleRow(params, 0))
    expected = torch.tensor(logits).log_softmax(0).tolist()
    assert sampled.token_id == 3
    assert sampled.logprobs is not None
    assert sampled.logprobs.token_ids == (3, 1, 2)
    assert sampled.logprobs.values == pytest.approx([expected[3], expected[1], expected[2]], abs=1e-6)


def test_no_more_logprobs_than_tokens() -> None:
    logprobs = one([0.0, 1.0], SampleRow(replace(GREEDY, num_logprobs=20), 0)).logprobs
    assert logprobs is not None and logprobs.token_ids == (1, 1, 0)


def test_zero_logprobs_are_the_chosen_tokens_alone() -> None:
    logprobs = one([0.0, 1.0], SampleRow(replace(GREEDY, num_logprobs=0), 0)).logprobs
    assert logprobs is not None and logprobs.token_ids == (1,)


def test_rows_of_every_kind_get_what_they_get_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    logits_BV = 3 * torch.randn((40, 32_000), generator=generator)
    kinds = [
        GREEDY,
        replace(GREEDY, num_logprobs=4),
        replace(GREEDY, num_logprobs=0),
        replace(GREEDY, frequency_penalty=0.3, num_logprobs=4),
        replace(WARM, temperature=0.7),
        replace(WARM, top_k=40, top_p=0.9),
        replace(WARM, top_p=0.97),
        replace(WARM, top_p=0.9, min_p=0.001, logit_bias={17: 4.0}),
        replace(WARM, presence_penalty=0.5, repetition_penalty=1.2),
    ]
    batch = [
        SampleRow(replace(kinds[index % len(kinds)], seed=index), index, History(range(index), range(0, 90, index + 1)))
        for index in range(40)
    ]
    alone = [sample(logits_BV[index : index + 1], [row])[0] for index, row in enumerate(batch)]
    assert sample(logits_BV, batch) == alone


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty((0, 5)), []) == []
