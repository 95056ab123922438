"""The engine over a model whose tokens can be worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gemline.engine.blocks import num_blocks_for
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.events import FinishReason
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import Sampled, SampleRow, sample
from gemline.engine.toy import ToyModel, toy_answer, toy_engine, toy_next
from gemline.errors import ConfigurationError, ContextLengthExceeded, InvalidRequest, Overloaded

MakeRequest = Callable[..., EngineRequest]
Drain = Callable[[Engine], dict[int, list[int]]]
SMALL = EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=8, max_running=4)


def test_a_sequence_gets_its_tokens_one_by_one_and_leaves_nothing(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine()
    engine.add(greedy(1, [5, 6, 7], max_tokens=20))
    assert drain(engine) == {1: toy_answer([5, 6, 7], 20)}
    assert engine.num_free_blocks == engine.num_blocks
    assert not engine.has_work


def test_sequences_that_come_and_go_do_not_touch_each_other(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine()
    prompts = {seq_id: [seq_id + 1] * (seq_id * 3 % 20 + 1) for seq_id in range(12)}
    for seq_id, prompt in prompts.items():
        engine.add(greedy(seq_id, prompt, max_tokens=10 + seq_id))
    answers = drain(engine)
    assert answers == {seq_id: toy_answer(prompt, 10 + seq_id) for seq_id, prompt in prompts.items()}


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 3, 5, 8, 40])
def test_the_size_of_chunks_changes_nothing(max_batch_tokens: int, greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine(EngineOptions(num_kv_blocks=64, block_size=3, max_batch_tokens=max_batch_tokens))
    engine.add(greedy(1, range(30), max_tokens=9))
    engine.add(greedy(2, range(40, 45), max_tokens=9))
    assert drain(engine) == {1: toy_answer(range(30), 9), 2: toy_answer(range(40, 45), 9)}


def test_a_pool_too_small_for_all_is_slower_not_wrong(greedy: MakeRequest) -> None:
    engine, num_preempted = toy_engine(SMALL), 0
    answers: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for seq_id in answers:
        engine.add(greedy(seq_id, [seq_id] * 10, max_tokens=40))
    while engine.has_work:
        result = engine.step()
        num_preempted += result.num_preempted
        for event in result.tokens:
            answers[event.seq_id].append(event.token_id)
    assert num_preempted > 0
    assert answers == {seq_id: toy_answer([seq_id] * 10, 40) for seq_id in answers}


def test_local_blocks_that_no_window_can_reach_are_free_at_once(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_batch_tokens=1))
    engine.add(greedy(1, range(40), max_tokens=4))
    for num_computed in range(1, 41):
        engine.step()
        num_global = engine.num_blocks.num_global - engine.num_free_blocks.num_global
        num_local = engine.num_blocks.num_local - engine.num_free_blocks.num_local
        assert num_global == num_blocks_for(num_computed, 4)
        # A query at the last full block's end, where another request may go on, sees from 5 positions before it on.
        assert num_local == num_global - max(0, num_computed // 4 * 4 - 5) // 4


def test_a_stop_token_ends_the_answer_and_is_its_last(greedy: MakeRequest) -> None:
    expected = toy_answer([9, 9], 6)
    engine = toy_engine()
    request = greedy(1, [9, 9], max_tokens=30)
    engine.add(replace(request, params=replace(request.params, stop_token_ids=frozenset({expected[5]}))))
    events = [event for _ in range(6) for event in engine.step().tokens]
    assert [event.token_id for event in events] == expected
    assert [event.finish for event in events] == [None] * 5 + [FinishReason.STOP]
    assert not engine.has_work


def test_max_tokens_ends_the_answer(greedy: MakeRequest) -> None:
    engine = toy_engine()
    engine.add(greedy(1, [3], max_tokens=2))
    assert [engine.step().tokens[0].finish for _ in range(2)] == [None, FinishReason.LENGTH]


def test_a_draw_is_keyed_by_the_position_of_the_token_it_draws(drain: Drain) -> None:
    params = SamplingParams(max_tokens=12, temperature=2.0, seed=3)
    engine, token_ids = toy_engine(), [4, 5, 6]
    engine.add(EngineRequest(1, tuple(token_ids), 3, params))
    for token_id in drain(engine)[1]:
        logits_BV = torch.tensor([[((v - toy_next(token_ids)) % 97) * -0.5 for v in range(97)]])
        assert sample(logits_BV, [SampleRow(params, len(token_ids))]) == [Sampled(token_id, None)]
        token_ids.append(token_id)


@pytest.mark.parametrize(
    ("penalty", "expected"), [("repetition_penalty", 60), ("presence_penalty", 50), ("frequency_penalty", 50)]
)
def test_repetition_is_over_the_prompt_too_the_other_penalties_over_the_answer(
    penalty: str, expected: int, drain: Drain
) -> None:
    values = {"max_tokens": 1, "temperature": 0.0, "logit_bias": {50: 1000.0, 60: 500.0}, penalty: 1000.0}
    engine = toy_engine()
    engine.add(EngineRequest(1, (50, 3), 2, SamplingParams(**values)))  # type: ignore[arg-type]
    assert drain(engine) == {1: [expected]}


def test_an_answer_begun_elsewhere_goes_on_as_if_it_had_begun_here(drain: Drain) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.5, seed=11, repetition_penalty=1.2, frequency_penalty=0.3)
    whole = toy_engine()
    whole.add(EngineRequest(1, (4, 5, 6), 3, params))
    expected = drain(whole)[1]
    for num_before in (1, 7, 19):
        engine = toy_engine()
        engine.add(EngineRequest(1, (4, 5, 6, *expected[:num_before]), 3, params))
        assert drain(engine)[1] == expected[num_before:]


def test_a_cancelled_sequence_frees_its_blocks_at_once_in_any_state(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_running=3))
    engine.add(greedy(1, range(6)))
    engine.add(greedy(2, range(20), hold=True))
    assert engine.reserve(greedy(3, range(4))) is None
    for _ in range(5):
        engine.step()
    assert engine.reserve(greedy(3, range(4)))
    engine.add(greedy(4, range(4)))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (3, 1)
    for seq_id in (1, 2, 3, 4, 4, 99):
        engine.cancel(seq_id)
    assert engine.num_free_blocks == engine.num_blocks
    assert (engine.num_running, engine.num_waiting, engine.has_work) == (0, 0, False)


def test_a_sequence_without_numbers_fails_alone(greedy: MakeRequest) -> None:
    engine = toy_engine(model=ToyModel(nan_token_id=50))
    engine.add(greedy(1, [1, 2]))
    engine.add(greedy(2, [1, 50]))
    result = engine.step()
    assert [event.seq_id for event in result.tokens] == [1]
    assert [(event.seq_id, event.code) for event in result.failures] == [(2, "internal_error")]
    assert engine.num_running == 1


def test_a_sequence_that_breaks_its_batch_fails_alone(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine(model=ToyModel(broken_token_id=50))
    engine.add(greedy(1, [1, 2]))
    engine.add(greedy(2, [1, 50]))
    engine.add(greedy(3, [7, 8], hold=True))
    result = engine.step()
    assert [(event.seq_id, event.code) for event in result.failures] == [(2, "internal_error")]
    assert "toy" not in result.failures[0].message
    assert [(event.seq_id, event.token_id) for event in result.tokens] == [
        (1, toy_next([1, 2])),
        (3, toy_next([7, 8])),
    ]
    assert drain(engine) == {1: toy_answer([1, 2], 8)[1:]}
    engine.cancel(3)
    assert engine.num_free_blocks == engine.num_blocks


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", math.nan),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", math.nan),
        ("min_p", 1.5),
        ("seed", 2**64),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("num_logprobs", -1),
        ("logit_bias", {3: math.nan}),
    ],
)
def test_a_number_that_could_break_a_batch_is_refused_by_name(name: str, value: object) -> None:
    params = SamplingParams(**({"max_tokens": 5} | {name: value}))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=name) as caught:
        toy_engine().add(EngineRequest(1, (1,), 1, params))
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (EngineRequest(1, (), 0, SamplingParams(5)), InvalidRequest, "num_prompt_tokens must be from 1 to the 0"),
        (EngineRequest(1, (1, 97), 2, SamplingParams(5)), InvalidRequest, "97 is not in the vocabulary of 97"),
        (EngineRequest(1, (-1,), 1, SamplingParams(5)), InvalidRequest, "-1 is not in the vocabulary"),
        (EngineRequest(1, (1,), 1, SamplingParams(5, logit_bias={300: 1.0})), InvalidRequest, "300"),
        (
            EngineRequest(1, (1, 2, 3), 1, SamplingParams(2)),
            InvalidRequest,
            "over the 2 tokens generated already, is 2",
        ),
        (
            EngineRequest(1, (1,) * 60, 60, SamplingParams(5)),
            ContextLengthExceeded,
            "64 tokens; the prompt has 60 and .* 5",
        ),
    ],
)
def test_a_request_that_could_never_be_served_is_refused(
    request_: EngineRequest, error: type[InvalidRequest], message: str
) -> None:
    engine = toy_engine()
    for take in (engine.add, engine.reserve):
        with pytest.raises(error, match=message):
            take(request_)
    assert not engine.has_work


def test_a_request_that_fills_the_context_to_the_last_token_is_served(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine(SMALL)
    engine.add(greedy(1, [1] * 60, max_tokens=4))
    assert drain(engine) == {1: toy_answer([1] * 60, 4)}


def test_a_full_queue_refuses_more(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_waiting=2))
    engine.add(greedy(1, [1]))
    engine.add(greedy(2, [1]))
    with pytest.raises(Overloaded, match="2 requests wait"):
        engine.add(greedy(3, [1]))


def test_a_number_has_one_live_sequence(greedy: MakeRequest) -> None:
    engine = toy_engine()
    engine.add(greedy(1, [1]))
    with pytest.raises(ValueError, match="already there"):
        engine.add(greedy(1, [1]))


def test_a_pool_too_small_for_one_context_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one context of 64 tokens needs 16 blocks of 4"):
        toy_engine(replace(SMALL, num_kv_blocks=15))


def test_unless_told_the_pools_are_sized_for_all_that_may_run() -> None:
    engine = toy_engine(EngineOptions(block_size=4, max_running=3))
    assert engine.num_blocks.num_global == 3 * 16


def test_everything_can_be_let_go_of(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_running=2))
    for seq_id in (1, 2, 3):
        engine.add(greedy(seq_id, [seq_id]))
    engine.step()
    assert {event.seq_id for event in engine.fail_all()} == {1, 2, 3}
    assert engine.num_free_blocks == engine.num_blocks


PACED = EngineOptions(num_kv_blocks=64, block_size=4, max_batch_tokens=64, max_running=8)


def teach(engine: Engine) -> None:
    """That a stream alone takes 10 ms a step, and a token 0.5 ms."""
    for _ in range(9):
        engine._pacer.observe(1, 0, 0.01)
        engine._pacer.observe(1, 19, 0.016)


def test_a_prompt_that_comes_while_a_stream_runs_is_computed_in_small_pieces(greedy: MakeRequest) -> None:
    engine = toy_engine(PACED)
    engine.add(greedy(1, [1] * 50, max_tokens=10))
    assert engine.step().num_batch_tokens == 50  # nobody to be spared
    teach(engine)
    engine.step()
    engine.add(greedy(2, [2] * 60, max_tokens=1))
    for _ in range(2):  # and it stays the newcomer whatever the stream says meanwhile
        teach(engine)
        assert engine.step().num_batch_tokens == 20


def test_prompts_that_came_while_the_first_was_computed_are_computed_in_large_pieces(greedy: MakeRequest) -> None:
    engine = toy_engine(PACED)
    engine.add(greedy(1, [1] * 50, max_tokens=10))
    engine.step()
    engine.add(greedy(2, [2] * 60, max_tokens=1))  # as the engine's thread does between two steps
    teach(engine)
    assert engine.step().num_batch_tokens == 61


def test_prompts_that_came_before_the_streams_are_computed_in_large_pieces(greedy: MakeRequest) -> None:
    engine = toy_engine(PACED)
    for seq_id in (1, 2, 3):
        engine.add(greedy(seq_id, [seq_id] * 50, max_tokens=10))
    engine.step()
    teach(engine)
    assert engine.step().num_batch_tokens == 64


def test_a_prompt_is_computed_in_large_pieces_again_when_the_streams_before_it_have_ended(greedy: MakeRequest) -> None:
    engine = toy_engine(PACED)
    engine.add(greedy(1, [1] * 50, max_tokens=10))
    engine.step()
    engine.add(greedy(2, [2], max_tokens=10))
    engine.add(greedy(3, [3] * 40, max_tokens=1))
    engine.cancel(1)
    teach(engine)
    assert engine.step().num_batch_tokens == 41


def test_a_tenant_that_has_nothing_else_here_is_answered_before_what_a_flood_sent_ahead(greedy: MakeRequest) -> None:
    engine = toy_engine(EngineOptions(num_kv_blocks=600, block_size=4, max_batch_tokens=64, max_running=32))
    first_at: dict[int, int] = {}
    for seq_id in range(12):
        engine.add(replace(greedy(seq_id, range(seq_id, seq_id + 40), max_tokens=24), cache_salt=b"flood"))
    for _ in range(3):
        engine.step()
    engine.add(replace(greedy(99, range(40, 60), max_tokens=2), cache_salt=b"light"))
    for number in range(100):
        for event in engine.step().tokens:
            first_at.setdefault(event.seq_id, number)
    assert first_at[99] == 0
    assert sum(at > 0 for at in first_at.values()) >= 5


def test_a_tenant_with_one_stream_is_answered_before_what_a_flood_sent_ahead(greedy: MakeRequest) -> None:
    """Whoever has fewer sequences here goes first, whether that is none or one."""
    engine = toy_engine(EngineOptions(num_kv_blocks=600, block_size=4, max_batch_tokens=64, max_running=32))
    engine.add(replace(greedy(50, range(5), max_tokens=55), cache_salt=b"light"))
    for seq_id in range(12):
        engine.add(replace(greedy(seq_id, range(seq_id, seq_id + 40), max_tokens=24), cache_salt=b"flood"))
    for _ in range(4):
        engine.step()
    engine.add(replace(greedy(99, range(40, 50), max_tokens=2), cache_salt=b"light"))
    order: list[int] = []
    while engine.has_work:
        order += [event.seq_id for event in engine.step().tokens if event.seq_id not in order]
    late = [seq_id for seq_id in range(12) if order.index(seq_id) > order.index(99)]
    assert len(late) >= 5


def test_whoever_is_passed_over_has_its_turn_when_its_elders_have_ended(greedy: MakeRequest) -> None:
    engine = toy_engine(EngineOptions(num_kv_blocks=600, block_size=4, max_batch_tokens=16, max_running=8))
    engine.add(replace(greedy(1, range(4), max_tokens=20), cache_salt=b"flood"))
    engine.step()
    engine.add(replace(greedy(2, range(60), max_tokens=2), cache_salt=b"flood"))
    answered: set[int] = set()
    for number in range(200):  # others come without end, each as much as a step can take
        if engine.num_waiting < 2:
            engine.add(replace(greedy(100 + number, [number % 90] * 30, max_tokens=1), cache_salt=b"other%d" % number))
        answered |= {event.seq_id for event in engine.step().tokens}
    assert 2 in answered
