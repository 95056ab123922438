"""Prefill on one engine, decode on another: over a model whose tokens can be worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from gemline.engine.engine import Engine, EngineOptions, EngineRequest, UnknownSequence
from gemline.engine.events import FinishReason, PrefillEvent, StepResult
from gemline.engine.toy import toy_answer, toy_engine
from gemline.errors import InternalError

MakeRequest = Callable[..., EngineRequest]
Drain = Callable[[Engine], dict[int, list[int]]]
SMALL = EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=8, max_running=4)


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
    prompt = list(range(40, 40 + num_prompt))  # no token is its position, or keys would equal values
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
    assert engine.reserve(greedy(1, range(41)))
    assert engine.kv_ranges(41) == ((36, 41), (0, 41))
    used = [total - free for total, free in zip(engine.num_blocks, engine.num_free_blocks, strict=True)]
    assert used == [11, 2]


def test_an_imported_sequence_runs_at_its_age(greedy: MakeRequest) -> None:
    engine = toy_engine(SMALL)
    assert engine.reserve(greedy(1, range(6)))
    engine.add(greedy(2, range(6)))
    engine.step()
    for layer, (start, stop) in enumerate(engine.kv_ranges(6)):
        engine.import_kv(1, layer, start, stop, bytes(16 * (stop - start)))
    engine.finish_import(1, 3)
    assert [event.seq_id for event in engine.step().tokens] == [1, 2]


def test_an_import_may_end_with_its_first_token(greedy: MakeRequest) -> None:
    engine = toy_engine()
    assert engine.reserve(greedy(1, range(6), max_tokens=1))
    assert engine.finish_import(1, 3).finish is FinishReason.LENGTH
    assert engine.num_free_blocks == engine.num_blocks


@pytest.mark.parametrize("token_id", [-1, 97])
def test_a_first_token_that_the_vocabulary_does_not_have_is_refused_before_it_meets_a_batch(
    token_id: int, greedy: MakeRequest, drain: Drain
) -> None:
    engine = toy_engine()
    assert engine.reserve(greedy(1, range(6)))
    with pytest.raises(InternalError, match=f"{token_id} is not in the vocabulary of 97"):
        engine.finish_import(1, token_id)
    engine.abandon_import(1)
    assert drain(engine) == {1: toy_answer(range(6), 8)}


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
