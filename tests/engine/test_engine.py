"""The engine over a model whose tokens can be worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from gemline.engine.engine import Engine, EngineOptions, EngineRequest, UnknownSequence
from gemline.engine.events import FinishReason, PrefillEvent, StepResult
from gemline.engine.params import SamplingParams
from gemline.engine.toy import ToyModel, toy_answer, toy_engine
from gemline.errors import ConfigurationError, ContextLengthExceeded, InternalError, InvalidRequest, Overloaded

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


def test_local_blocks_that_left_the_window_are_free_at_once(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_batch_tokens=4))
    engine.add(greedy(1, range(40), max_tokens=4))
    for num_computed in range(4, 41, 4):
        engine.step()
        num_global = engine.num_blocks.num_global - engine.num_free_blocks.num_global
        num_local = engine.num_blocks.num_local - engine.num_free_blocks.num_local
        assert num_global == num_computed // 4
        # The next query, at num_computed, sees from num_computed - 5 on: this block and all or part of two before.
        assert num_local == min(num_global, 2)


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
    assert engine.reserve(greedy(3, range(4))) is False
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


def test_a_batch_that_breaks_fails_its_sequences_and_the_engine_goes_on(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine(replace(SMALL, max_running=2), ToyModel(broken_token_id=50))
    engine.add(greedy(1, [1, 2]))
    engine.add(greedy(2, [1, 50]))
    engine.add(greedy(3, [7]))
    failures = engine.step().failures
    assert {event.seq_id for event in failures} == {1, 2}
    assert "toy" not in failures[0].message
    assert drain(engine) == {3: toy_answer([7], 8)}
    assert engine.num_free_blocks == engine.num_blocks


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


def test_a_held_sequence_tells_of_each_chunk_and_keeps_its_blocks(greedy: MakeRequest) -> None:
    engine = toy_engine(SMALL)
    engine.add(greedy(1, range(18), hold=True))
    results = [engine.step() for _ in range(3)]
    assert [r.prefills for r in results] == [(PrefillEvent(1, 8),), (PrefillEvent(1, 16),), (PrefillEvent(1, 18),)]
    assert [event.token_id for event in results[2].tokens] == toy_answer(range(18), 1)
    assert results[2].tokens[0].finish is None
    assert not engine.has_work and engine.num_running == 1
    assert engine.num_free_blocks.num_global == 16 - 5
    engine.cancel(1)
    assert engine.num_free_blocks == engine.num_blocks


def hand_over(source: Engine, target: Engine, seq_id: int, num_tokens: int) -> None:
    for layer, (start, stop) in enumerate(source.kv_ranges(num_tokens)):
        middle = (start + stop) // 2
        for piece in ((start, middle), (middle, stop)):
            target.import_kv(seq_id, layer, *piece, source.export_kv(seq_id, layer, *piece))


@pytest.mark.parametrize("num_prompt", [1, 4, 5, 6, 7, 23, 50])
def test_a_prompt_prefilled_elsewhere_is_decoded_as_if_it_had_been_here(
    num_prompt: int, greedy: MakeRequest, drain: Drain
) -> None:
    source, target = toy_engine(SMALL), toy_engine(replace(SMALL, block_size=3, num_kv_blocks=30))
    prompt = list(range(num_prompt))
    target.add(greedy(7, [90], max_tokens=5))
    target.step()
    source.add(greedy(1, prompt, max_tokens=10, hold=True))
    assert target.reserve(greedy(1, prompt, max_tokens=10))
    first = None
    while first is None:
        first = next(iter(source.step().tokens), None)
    hand_over(source, target, 1, num_prompt)
    event = target.finish_import(1, first.token_id)
    assert event.finish is None
    answers = drain(target)
    assert [first.token_id, *answers[1]] == toy_answer(prompt, 10)


def test_an_import_takes_only_the_window_of_local_blocks(greedy: MakeRequest) -> None:
    engine = toy_engine(SMALL)
    assert engine.reserve(greedy(1, range(40)))
    assert engine.kv_ranges(40) == ((35, 40), (0, 40))
    used = [total - free for total, free in zip(engine.num_blocks, engine.num_free_blocks, strict=True)]
    assert used == [10, 2]


def test_an_import_may_end_with_its_first_token(greedy: MakeRequest) -> None:
    engine = toy_engine()
    assert engine.reserve(greedy(1, range(6), max_tokens=1))
    assert engine.finish_import(1, 3).finish is FinishReason.LENGTH
    assert engine.num_free_blocks == engine.num_blocks


def test_an_abandoned_import_is_prefilled_here_before_younger_requests(greedy: MakeRequest, drain: Drain) -> None:
    engine = toy_engine(replace(SMALL, max_running=1))
    assert engine.reserve(greedy(1, range(10)))
    engine.add(greedy(2, range(3)))
    assert engine.step() == StepResult(num_running=1, num_waiting=1)
    engine.abandon_import(1)
    assert engine.num_free_blocks == engine.num_blocks
    engine.step()
    assert engine.num_running == engine.num_waiting == 1
    assert drain(engine) == {1: toy_answer(range(10), 8), 2: toy_answer(range(3), 8)}


def test_there_is_no_room_for_an_import_while_others_wait(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_running=2))
    engine.add(greedy(1, [1]))
    assert not engine.reserve(greedy(2, [1]))
    engine.step()
    assert engine.reserve(greedy(2, [1]))
    assert not engine.reserve(greedy(3, [1]))


def test_what_is_gone_or_not_there_cannot_be_handed_over(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_batch_tokens=16))
    with pytest.raises(UnknownSequence):
        engine.export_kv(1, 0, 0, 4)
    engine.add(greedy(1, range(20), hold=True))
    engine.step()
    with pytest.raises(IndexError, match=r"\[12, 17\) are not computed; 16 are"):
        engine.export_kv(1, 0, 12, 17)
    with pytest.raises(IndexError, match=r"\[7, 12\) are not all held; \[8, 16\) are"):
        engine.export_kv(1, 0, 7, 12)
    for gone in (lambda: engine.finish_import(1, 5), lambda: engine.abandon_import(1)):
        with pytest.raises(UnknownSequence, match="sequence 1 is not importing"):
            gone()


def test_a_payload_of_another_size_is_refused(greedy: MakeRequest) -> None:
    engine = toy_engine()
    assert engine.reserve(greedy(1, range(6)))
    with pytest.raises(InternalError, match="take 32 bytes; 31 bytes came"):
        engine.import_kv(1, 1, 0, 2, bytes(31))
    with pytest.raises(IndexError):
        engine.import_kv(1, 0, 0, 9, bytes(9 * 16))


def test_everything_can_be_let_go_of(greedy: MakeRequest) -> None:
    engine = toy_engine(replace(SMALL, max_running=2))
    for seq_id in (1, 2, 3):
        engine.add(greedy(seq_id, [seq_id]))
    engine.step()
    assert {event.seq_id for event in engine.fail_all()} == {1, 2, 3}
    assert engine.num_free_blocks == engine.num_blocks
