"""An engine of several ranks on the Triton backend: steps queued ahead on every rank, tokens as one device gives."""

from dataclasses import dataclass, replace

import pytest
from support.divided import CONFIG, OPTIONS, divided_engine, whole_engine

from gemline.engine.engine import Engine
from gemline.engine.events import Logprobs
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline_kernels.gpu import backend

SMALL = replace(CONFIG, num_hidden_layers=2, layer_kinds=CONFIG.layer_kinds[:2])
BLOCKS = replace(OPTIONS, num_kv_blocks=40, block_size=16)
MIXED = (
    SamplingParams(5, temperature=0.0),
    SamplingParams(4, temperature=0.9, seed=2**63 + 7),
    SamplingParams(4, temperature=1.5, top_k=40, top_p=0.9, min_p=0.001, seed=8),
    SamplingParams(2, temperature=0.7, seed=9, num_logprobs=3),
)


@dataclass
class Answer:
    token_ids: list[int]
    logprobs: list[Logprobs]


def answers(engine: Engine) -> list[Answer]:
    """Each begins while those before it are at work."""
    assert engine._runner.looks_ahead
    found = [Answer([], []) for _ in MIXED]

    def step() -> None:
        result = engine.step()
        assert not result.failures
        for event in result.tokens:
            found[event.seq_id].token_ids.append(event.token_id)
            if event.logprobs is not None:
                found[event.seq_id].logprobs.append(event.logprobs)

    for seq_id, params in enumerate(MIXED):
        prompt = tuple((seq_id * 31 + 7 * at) % 330 for at in range(3 + 4 * seq_id))
        engine.add(EngineRequest(seq_id, prompt, len(prompt), params))
        step()
    while engine.has_work:
        step()
    return found


def check(found: list[Answer] | None, expected: list[Answer]) -> None:
    """The same tokens, and nearly the same log-probabilities."""
    assert found is not None
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert len(mine.logprobs) == len(theirs.logprobs)
        for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert one.token_ids == other.token_ids
            assert one.values == pytest.approx(other.values, abs=1e-4)


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    return answers(whole_engine(SMALL, BLOCKS, backend))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_answer_as_one_device_does(num_ranks: int, expected: list[Answer]) -> None:
    """Greedy and drawn, cut off and not; with log-probabilities, which rows do not give. Key-value heads are 2."""
    check(divided_engine(num_ranks, SMALL, answers, BLOCKS, backend), expected)
