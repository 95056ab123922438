"""Masks in the engine: what they forbid never comes, whatever else is asked for and whatever happens on the way."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.constraint import Constraint, Syntax
from gemline.engine.engine import Engine, EngineRequest
from gemline.engine.events import FailureEvent, FinishReason, TokenEvent
from gemline.engine.masking import mask_row_
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import SampleRow, sample
from gemline.engine.toy import TOY_CONFIG, ToyModel, toy_answer, toy_engine
from gemline.errors import InvalidRequest

V = TOY_CONFIG.vocab_size
RULE = Constraint(Syntax.REGEX, "by hand", param="tools")


def bits(allowed: set[int], size: int = V) -> bytes:
    flags = np.zeros(size, dtype=np.uint8)
    flags[sorted(allowed)] = 1
    return np.packbits(flags, bitorder="little").tobytes()


class Rising:
    """A matcher by hand: each token is larger than the one before; it fails behind `fails_at`."""

    param = "tools"

    def __init__(self, last: int = -1, fails_at: int | None = None) -> None:
        self.failure: str | None = None
        self.token_ids: list[int] = []
        self._last = last
        self._fails_at = fails_at

    def mask(self) -> bytes | None:
        return None if self.failure else bits(set(range(self._last + 1, V)))

    def advance(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self._last = token_id
        if token_id == self._fails_at:
            self.failure = "tools: no way on"


class Alternating(Rising):
    """Even tokens and odd ones take turns."""

    def mask(self) -> bytes | None:
        return bits(set(range(len(self.token_ids) % 2, V, 2)))


def request(seq_id: int, matcher: Rising | None, max_tokens: int = 6, **params: Any) -> EngineRequest:
    given = replace(SamplingParams(max_tokens, temperature=0.0), constraint=None if matcher is None else RULE, **params)
    return EngineRequest(seq_id, (5, 6, 7), 3, given, matcher=matcher)


def answers(engine: Engine) -> dict[int, list[TokenEvent]]:
    found: dict[int, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step().tokens:
            found.setdefault(event.seq_id, []).append(event)
    return found


@given(st.data())
def test_of_a_row_only_what_the_mask_allows_is_left(data: st.DataObject) -> None:
    size, num_bits = data.draw(st.integers(1, 40_000)), data.draw(st.integers(0, 40_000))
    flags = np.random.default_rng(data.draw(st.integers(0, 99))).random(num_bits) < data.draw(st.floats(0, 1))
    logits_V = torch.randn(size)
    masked_V = logits_V.clone()
    mask_row_(masked_V, np.packbits(flags, bitorder="little").tobytes())
    kept = np.zeros(size, dtype=bool)
    kept[: min(size, num_bits)] = flags[:size]
    assert torch.equal(masked_V[kept], logits_V[kept])
    assert bool((masked_V[~torch.from_numpy(kept)] == -torch.inf).all())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1, temperature=0.0),
        SamplingParams(1, temperature=1.5),
        SamplingParams(1, temperature=1.0, top_k=40, top_p=0.9),
        SamplingParams(1, temperature=1.0, min_p=0.3, repetition_penalty=1.5),
        SamplingParams(1, temperature=1.0, logit_bias={3: 100.0, 90: -100.0}, num_logprobs=3),
    ],
)
def test_a_forbidden_token_is_never_chosen(params: SamplingParams) -> None:
    logits_BV = torch.randn(40, V)
    rows = [SampleRow(replace(params, seed=row), row, matcher=Rising(last=80)) for row in range(40)]
    chosen = [one.token_id for one in sample(logits_BV, rows) if one is not None]
    assert len(chosen) == 40
    assert min(chosen) > 80


def test_logprobs_are_of_the_model_not_of_what_the_mask_left() -> None:
    logits_BV = torch.randn(1, V)
    (free,) = sample(logits_BV, [SampleRow(SamplingParams(1, temperature=0.0, num_logprobs=2), 0)])
    (masked,) = sample(
        logits_BV, [SampleRow(SamplingParams(1, temperature=0.0, num_logprobs=2), 0, matcher=Rising(last=95))]
    )
    assert free is not None and free.logprobs is not None and masked is not None and masked.logprobs is not None
    assert masked.token_id == 96
    assert masked.logprobs.token_ids == (96, *free.logprobs.token_ids[1:])
    assert masked.logprobs.values[0] == pytest.approx(float(logits_BV.log_softmax(-1)[0, 96]), abs=1e-5)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_constrained_sequence_beside_free_ones_changes_nothing_for_them(looks_ahead: bool) -> None:
    engine = toy_engine(model=ToyModel(looks_ahead=looks_ahead))
    engine.add(request(1, None))
    engine.add(request(2, Rising(last=60)))
    engine.add(request(3, None))
    found = answers(engine)
    for seq_id in (1, 3):
        assert [event.token_id for event in found[seq_id]] == toy_answer((5, 6, 7), 6)
    rising = [event.token_id for event in found[2]]
    assert rising == sorted(set(rising))
    assert rising[0] > 60


def test_max_tokens_cuts_a_constrained_answer_with_length() -> None:
    engine = toy_engine()
    engine.add(request(1, Rising(), max_tokens=2))
    assert [event.finish for event in answers(engine)[1]] == [None, FinishReason.LENGTH]


def test_the_matcher_hears_of_each_token_once_even_if_its_sequence_is_preempted() -> None:
    options = EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=16, max_running=4, prefix_cache=False)
    roomy, tight = toy_engine(), toy_engine(options)
    matchers: dict[int, Rising] = {}
    num_preempted = 0
    for seq_id in range(1, 5):
        matchers[seq_id] = Alternating()
        roomy.add(request(seq_id, Alternating(), max_tokens=30))
        tight.add(request(seq_id, matchers[seq_id], max_tokens=30))
    expected = answers(roomy)
    found: dict[int, list[int]] = {}
    while tight.has_work:
        result = tight.step()
        num_preempted += result.num_preempted
        for event in result.tokens:
            found.setdefault(event.seq_id, []).append(event.token_id)
    assert num_preempted
    for seq_id, token_ids in found.items():
        assert token_ids == [event.token_id for event in expected[seq_id]]
        assert matchers[seq_id].token_ids == token_ids[:-1]  # of the last one it need not hear


def test_a_matcher_that_fails_ends_its_own_sequence_with_its_reason() -> None:
    engine = toy_engine()
    engine.add(request(1, Rising(fails_at=toy_answer((5, 6, 7), 1)[0])))
    engine.add(request(2, None))
    failures: list[FailureEvent] = []
    tokens = 0
    while engine.has_work:
        result = engine.step()
        failures += result.failures
        tokens += sum(event.seq_id == 2 for event in result.tokens)
    (failure,) = failures
    assert (failure.seq_id, failure.code, failure.param) == (1, "invalid_request", "tools")
    assert failure.message == "tools: no way on"
    assert tokens == 6


def test_a_constraint_without_a_matcher_is_refused() -> None:
    with pytest.raises(InvalidRequest) as raised:
        toy_engine().add(replace(request(1, Rising()), matcher=None))
    assert raised.value.param == "tools"
