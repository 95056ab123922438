"""Steps queued ahead: the same tokens as without, whoever comes, goes, fails or wants more than a row gives."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.params import SamplingParams
from gemline.engine.toy import ToyModel, toy_answer, toy_engine, toy_next
from gemline.engine.toy_decoder import ToyDecoder

Drain = Callable[[Engine], dict[int, list[int]]]
MakeRequest = Callable[..., EngineRequest]
OPTIONS = EngineOptions(num_kv_blocks=100, block_size=4, max_batch_tokens=64, max_running=8)


def ahead(model: ToyModel | None = None, options: EngineOptions = OPTIONS) -> Engine:
    return toy_engine(options, model or ToyModel(looks_ahead=True))


def decoder_of(engine: Engine) -> ToyDecoder:
    rows = engine._runner._rows
    assert rows is not None
    decoder = rows._rows
    assert isinstance(decoder, ToyDecoder)
    return decoder


def test_a_stream_is_told_of_once_and_computed_once_a_token(greedy: MakeRequest, drain: Drain) -> None:
    engine = ahead()
    engine.add(greedy(1, [5, 6, 7], max_tokens=30))
    assert drain(engine) == {1: toy_answer([5, 6, 7], 30)}
    decoder = decoder_of(engine)
    assert (decoder.num_put, decoder.launched) == (1, [1] * 29)  # the first token is the prompt's


def test_a_step_is_queued_while_the_tokens_of_the_one_before_are_not_asked_for_yet(greedy: MakeRequest) -> None:
    engine = ahead()
    engine.add(greedy(1, [5, 6, 7], max_tokens=30))
    for num_steps in range(5):
        assert len(engine.step().tokens) == 1
        assert len(decoder_of(engine).launched) == num_steps + (num_steps > 0)


def test_who_joins_costs_nobody_a_step(greedy: MakeRequest) -> None:
    engine = ahead()
    answers: dict[int, list[int]] = {seq_id: [] for seq_id in range(1, 7)}
    for seq_id in answers:
        engine.add(greedy(seq_id, [seq_id] * 5, max_tokens=40))
        for _ in range(3):
            given = {event.seq_id: event.token_id for event in engine.step().tokens}
            assert given.keys() >= {earlier for earlier in answers if earlier < seq_id}
            for other, token_id in given.items():
                answers[other].append(token_id)
    assert answers == {seq_id: toy_answer([seq_id] * 5, len(given)) for seq_id, given in answers.items()}
    assert all(len(answer) >= 3 * (7 - seq_id) - 1 for seq_id, answer in answers.items())
    assert decoder_of(engine).num_put == 6


def test_one_that_stops_leaves_at_most_one_step_nobody_wanted(drain: Drain) -> None:
    engine = ahead()
    answer = toy_answer([1, 2], 20)
    stop = next(token_id for index, token_id in enumerate(answer) if index > 4 and token_id not in answer[:index])
    params = SamplingParams(max_tokens=50, temperature=0.0, stop_token_ids=frozenset({stop}))
    engine.add(EngineRequest(1, (1, 2), 2, params))
    expected = answer[: answer.index(stop) + 1]
    assert drain(engine) == {1: expected}
    assert len(decoder_of(engine).launched) == len(expected)
    assert engine.num_free_blocks == engine.num_blocks


def test_rows_are_taken_anew_when_most_of_them_are_empty(greedy: MakeRequest, drain: Drain) -> None:
    engine = ahead()
    lengths = {seq_id: 45 if seq_id == 8 else 3 + seq_id for seq_id in range(1, 9)}
    for seq_id, length in lengths.items():
        engine.add(greedy(seq_id, [seq_id] * 3, max_tokens=length))
    assert drain(engine) == {seq_id: toy_answer([seq_id] * 3, length) for seq_id, length in lengths.items()}
    launched = decoder_of(engine).launched
    assert max(launched) == 8
    assert set(launched[-20:]) == {1}


@pytest.mark.parametrize("nan_token_id", range(0, 97, 6))
def test_a_row_that_fails_harms_no_other(nan_token_id: int, greedy: MakeRequest) -> None:
    prompts = {seq_id: [seq_id, seq_id + 1] for seq_id in range(1, 6)}
    answers: list[dict[int, list[int]]] = []
    failures: list[set[int]] = []
    for looks_ahead in (False, True):
        engine = ahead(ToyModel(nan_token_id=nan_token_id, looks_ahead=looks_ahead))
        for seq_id, prompt in prompts.items():
            engine.add(greedy(seq_id, prompt, max_tokens=25))
        answers.append({seq_id: [] for seq_id in prompts})
        failures.append(set())
        while engine.has_work:
            result = engine.step()
            failures[-1] |= {event.seq_id for event in result.failures}
            for event in result.tokens:
                answers[-1][event.seq_id].append(event.token_id)
    assert answers[0] == answers[1]
    assert failures[0] == failures[1]


def test_a_step_ahead_that_breaks_fails_the_one_that_broke_it(greedy: MakeRequest) -> None:
    prompts = {seq_id: [seq_id + 80] * 3 for seq_id in range(1, 5)}
    expected = {seq_id: toy_answer(prompt, 25) for seq_id, prompt in prompts.items()}
    broken_token_id = expected[2][9]
    engine = ahead(ToyModel(broken_token_id=broken_token_id, looks_ahead=True))
    for seq_id, prompt in prompts.items():
        engine.add(greedy(seq_id, prompt, max_tokens=25))
    answers: dict[int, list[int]] = {seq_id: [] for seq_id in prompts}
    failed = set()
    while engine.has_work:
        result = engine.step()
        failed |= {event.seq_id for event in result.failures}
        for event in result.tokens:
            answers[event.seq_id].append(event.token_id)
    assert failed == {seq_id for seq_id, answer in expected.items() if broken_token_id in answer[:-1]} != set(prompts)
    for seq_id, answer in expected.items():
        last = answer.index(broken_token_id) if seq_id in failed else len(answer)
        assert answers[seq_id] in (answer[:last], answer[: last + 1])  # the token that breaks is not seen, or is


def test_whoever_wants_what_a_row_does_not_give_gets_it_beside_the_others(greedy: MakeRequest) -> None:
    engine = ahead()
    engine.add(greedy(1, [5, 6], max_tokens=12))
    wish = replace(greedy(2, [7, 8], max_tokens=12), params=SamplingParams(12, temperature=0.0, num_logprobs=2))
    engine.add(wish)
    answers: dict[int, list[int]] = {1: [], 2: []}
    while engine.has_work:
        for event in engine.step().tokens:
            answers[event.seq_id].append(event.token_id)
            assert (event.logprobs is not None) == (event.seq_id == 2)
    assert answers == {1: toy_answer([5, 6], 12), 2: toy_answer([7, 8], 12)}
    assert decoder_of(engine).num_put == 1


def test_what_is_drawn_depends_on_no_step_ahead(drain: Drain) -> None:
    def drawn(looks_ahead: bool) -> dict[int, list[int]]:
        engine = ahead(ToyModel(looks_ahead=looks_ahead))
        for seq_id in range(1, 6):
            params = SamplingParams(
                20, temperature=1.5, top_k=seq_id % 3 * 9, top_p=1 - seq_id % 2 * 0.1, seed=2**64 - seq_id
            )
            engine.add(EngineRequest(seq_id, (seq_id, 3), 2, params))
        return drain(engine)

    answers = drawn(looks_ahead=True)
    assert answers == drawn(looks_ahead=False)
    assert any(answer != toy_answer([seq_id, 3], 20) for seq_id, answer in answers.items())


def test_a_sequence_of_the_same_number_is_another_one(greedy: MakeRequest, drain: Drain) -> None:
    engine = ahead()
    engine.add(greedy(1, [1] * 9, max_tokens=20))
    engine.step()
    engine.step()
    engine.cancel(1)
    engine.add(greedy(1, [1] * 8 + [2, 3], max_tokens=20))  # as long as the first was, most of it in the prefix cache
    assert drain(engine) == {1: toy_answer([1] * 8 + [2, 3], 20)}


def test_without_a_block_to_spare_nothing_is_queued_and_every_token_comes(greedy: MakeRequest, drain: Drain) -> None:
    engine = ahead(options=replace(OPTIONS, num_kv_blocks=16))
    for seq_id in (1, 2, 3):
        engine.add(greedy(seq_id, [seq_id] * 20, max_tokens=40))
    assert drain(engine) == {seq_id: toy_answer([seq_id] * 20, 40) for seq_id in (1, 2, 3)}
    assert engine.num_free_blocks == engine.num_blocks


def test_a_prompt_of_one_token_is_a_row(greedy: MakeRequest) -> None:
    engine = ahead()
    engine.add(greedy(1, [9], max_tokens=3))
    assert [event.token_id for event in engine.step().tokens] == [toy_next([9])]
