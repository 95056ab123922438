"""Log-probabilities of a prompt's own tokens: one for each but the first, whatever the chunks and whoever else runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.solo import Solo

from gemline.engine.engine import Engine, EngineRequest
from gemline.engine.events import TokenEvent
from gemline.engine.loading import load_model
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.engine.toy import TOY_CONFIG, ToyModel, toy_engine, toy_next

SCORED = SamplingParams(3, temperature=0.0, num_logprobs=2, prompt_logprobs=True)
PROMPT = [5, *(3 + 7 * i % 80 for i in range(40))]


def events_of(engine: Engine) -> dict[int, list[TokenEvent]]:
    found: dict[int, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step().tokens:
            found.setdefault(event.seq_id, []).append(event)
    return found


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_they_come_with_the_first_token_and_once(looks_ahead: bool) -> None:
    engine = toy_engine(model=ToyModel(looks_ahead=looks_ahead))
    for seq_id, params in ((1, SCORED), (2, replace(SCORED, prompt_logprobs=False)), (3, SCORED)):
        engine.add(EngineRequest(seq_id, tuple(PROMPT[seq_id:]), len(PROMPT) - seq_id, params, cache_salt=b"t"))
    found = events_of(engine)
    for seq_id in (1, 3):
        prompt = PROMPT[seq_id:]
        first, *rest = found[seq_id]
        assert not any(event.prompt_logprobs for event in rest)
        assert [logprobs.token_ids[0] for logprobs in first.prompt_logprobs] == prompt[1:]
        for num, logprobs in enumerate(first.prompt_logprobs, start=1):
            assert logprobs.token_ids[1] == toy_next(prompt[:num])
            steps_up = (prompt[num] - toy_next(prompt[:num])) % TOY_CONFIG.vocab_size
            assert logprobs.values[0] == pytest.approx(logprobs.values[1] - 0.5 * steps_up, abs=1e-4)
    assert not any(event.prompt_logprobs for event in found[2])


def test_what_a_cache_has_is_computed_again_for_them() -> None:
    engine = toy_engine()
    for seq_id in (1, 2):
        engine.add(EngineRequest(seq_id, tuple(PROMPT), len(PROMPT), SCORED, cache_salt=b"t"))
        (first, *_) = events_of(engine)[seq_id]
        assert len(first.prompt_logprobs) == len(PROMPT) - 1
        assert first.num_cached == 0


def test_an_answer_that_goes_on_from_elsewhere_does_not_tell_them_again() -> None:
    engine = toy_engine()
    engine.add(EngineRequest(1, (*PROMPT, toy_next(PROMPT)), len(PROMPT), SCORED))
    assert not any(event.prompt_logprobs for event in events_of(engine)[1])


def test_a_sequence_that_was_preempted_tells_each_once() -> None:
    options = EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=16, max_running=4, prefix_cache=False)
    engine, num_preempted, found = toy_engine(options), 0, dict[int, TokenEvent]()
    for seq_id in range(1, 5):
        params = replace(SCORED, max_tokens=22)
        engine.add(EngineRequest(seq_id, tuple(PROMPT[seq_id : seq_id + 20]), 20, params))
    while engine.has_work:
        result = engine.step()
        num_preempted += result.num_preempted
        for event in result.tokens:
            found.setdefault(event.seq_id, event)
    assert num_preempted
    for seq_id, first in found.items():
        assert [one.token_ids[0] for one in first.prompt_logprobs] == PROMPT[seq_id + 1 : seq_id + 20]


def test_they_are_those_of_a_plain_forward_pass(tiny_checkpoint: Path) -> None:
    options = EngineOptions(num_kv_blocks=64, max_batch_tokens=24, num_threads=1, dtype="float32")
    engine = Engine.load(tiny_checkpoint, options)
    prompt = [2, *(300 + 7 * i % 400 for i in range(1, 60))]
    engine.add(EngineRequest(1, tuple(prompt), len(prompt), SCORED))
    (first, *_) = events_of(engine)[1]
    expected_TV = Solo(load_model(tiny_checkpoint, options).model, 64).forward(prompt).log_softmax(-1)
    values = torch.tensor([logprobs.values[0] for logprobs in first.prompt_logprobs])
    assert torch.allclose(values, expected_TV[torch.arange(59), torch.tensor(prompt[1:])], atol=1e-3)
