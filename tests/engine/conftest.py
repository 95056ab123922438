"""What tests of the engine share: requests, and engines run until they are done."""

from collections.abc import Callable, Iterable

import pytest

from gemline.engine.engine import Engine, EngineRequest
from gemline.engine.events import StepResult
from gemline.engine.params import SamplingParams

MakeRequest = Callable[..., EngineRequest]
Drain = Callable[[Engine], dict[int, list[int]]]


@pytest.fixture
def greedy() -> MakeRequest:
    """A request for the likeliest tokens."""

    def make(seq_id: int, prompt: Iterable[int], max_tokens: int = 8, hold: bool = False) -> EngineRequest:
        token_ids = tuple(prompt)
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        return EngineRequest(seq_id, token_ids, len(token_ids), params, hold)

    return make


@pytest.fixture
def drain() -> Drain:
    """Steps an engine until nothing is left to do; every token it gave, by sequence."""

    def run(engine: Engine, max_steps: int = 2000) -> dict[int, list[int]]:
        answers: dict[int, list[int]] = {}
        for _ in range(max_steps):
            if not engine.has_work:
                return answers
            for event in _step(engine).tokens:
                answers.setdefault(event.seq_id, []).append(event.token_id)
        raise AssertionError(f"still at work after {max_steps} steps")

    return run


def _step(engine: Engine) -> StepResult:
    result = engine.step()
    assert not result.failures, result.failures
    return result
