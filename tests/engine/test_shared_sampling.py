"""Tokens chosen from parts of rows are those that are chosen from whole ones, and little crosses between ranks."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.thread_ranks import ThreadRanks, together

from gemline.engine import shared_sampling
from gemline.engine.history import History
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import Sampled, SampleRow, sample
from gemline.engine.shared_sampling import choose_together
from gemline_kernels.vocabulary import Vocabulary


class Allowed:
    """A constraint's mask."""

    def __init__(self, allowed: np.ndarray[Any, np.dtype[np.bool_]] | None) -> None:
        self._allowed = allowed

    def mask(self) -> bytes | None:
        return None if self._allowed is None else np.packbits(self._allowed, bitorder="little").tobytes()


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, list[SampleRow], int]:
    num_ranks = draw(st.sampled_from([1, 2, 3, 4]))
    vocab_size = draw(st.integers(max(num_ranks, 8), 700))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_rows = draw(st.integers(1, 4))
    logits_BV = torch.randn(num_rows, vocab_size, generator=generator) * draw(st.sampled_from([0.0, 0.01, 1.0, 8.0]))
    if draw(st.booleans()):
        logits_BV = logits_BV.round()  # many are equal
    if draw(st.integers(0, 9)) == 0:
        logits_BV[0, draw(st.integers(0, vocab_size - 1))] = draw(st.sampled_from([math.nan, math.inf]))
    tokens = st.integers(0, vocab_size - 1)
    rows = []
    for _ in range(num_rows):
        params = SamplingParams(
            max_tokens=1,
            temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 5.0])),
            top_k=draw(st.sampled_from([0, 1, 5, 300, 5000])),
            top_p=draw(st.sampled_from([1.0, 0.1, 0.6, 0.95, 0.999])),
            min_p=draw(st.sampled_from([0.0, 0.05, 0.7])),
            seed=draw(st.integers(0, 2**64 - 1)),
            repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            logit_bias=draw(st.dictionaries(tokens, st.sampled_from([-100.0, 1.5, 30.0]), max_size=3)),
            num_logprobs=draw(st.sampled_from([None, 0, 3, 20])),
        )
        history = History(draw(st.lists(tokens, max_size=5)), draw(st.lists(tokens, max_size=5)))
        allowed = torch.rand(vocab_size, generator=generator).numpy() < draw(st.sampled_from([0.02, 0.5]))
        matcher = draw(st.sampled_from([None, Allowed(allowed), Allowed(None)]))
        rows.append(SampleRow(params, draw(st.integers(0, 10_000)), history, matcher))
    return logits_BV, rows, num_ranks


def chosen(logits_BV: torch.Tensor, rows: list[SampleRow], ranks: ThreadRanks) -> list[Sampled | None]:
    vocabulary = Vocabulary(logits_BV.shape[-1], ranks)
    part_BV = logits_BV[:, vocabulary.tokens.start : vocabulary.tokens.stop]
    return choose_together(part_BV, [row.told() for row in rows], vocabulary)


@given(cases())
@settings(max_examples=150)
def test_ranks_choose_what_one_would(case: tuple[torch.Tensor, list[SampleRow], int]) -> None:
    logits_BV, rows, num_ranks = case
    expected = sample(logits_BV, rows)
    for found in together(num_ranks, lambda ranks: chosen(logits_BV, rows, ranks)):
        assert [it and it.token_id for it in found] == [it and it.token_id for it in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine is None or mine.logprobs is None) == (theirs is None or theirs.logprobs is None)
            if mine and theirs and mine.logprobs and theirs.logprobs and math.isfinite(theirs.logprobs.values[0]):
                assert mine.logprobs.values == pytest.approx(theirs.logprobs.values, abs=1e-4)
                named = dict(zip(mine.logprobs.token_ids, mine.logprobs.values, strict=True))
                assert len(mine.logprobs.token_ids) == len(theirs.logprobs.token_ids)
                for token_id, value in named.items():
                    exact = torch.log_softmax(logits_BV[found.index(mine)].double(), -1)[token_id]
                    assert value == pytest.approx(float(exact), abs=1e-4)


@pytest.mark.parametrize(("scale", "has_whole_rows"), [(8.0, False), (0.0, True)])
def test_whole_rows_cross_only_where_the_distribution_is_flat(
    scale: float, has_whole_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_sampling, "_CANDIDATES", 64)
    generator = torch.Generator().manual_seed(1)
    logits_BV = torch.randn(3, 4000, generator=generator) * scale
    rows = [SampleRow(SamplingParams(1, top_p=0.9, seed=seed), 5) for seed in range(3)]
    expected = sample(logits_BV, rows)

    def run(ranks: ThreadRanks) -> int:
        assert chosen(logits_BV, rows, ranks) == expected
        return ranks.num_numbers

    sent = together(2, run)
    assert (max(sent) >= 3 * 2000) == has_whole_rows
    assert has_whole_rows or max(sent) < 3 * 100
