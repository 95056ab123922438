"""The prefix cache over a real, tiny Gemma 2 in float32: found or computed, the text is the same."""

from pathlib import Path

import pytest
import torch
from support.block_account import check_blocks

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.model import Gemma2Model
from gemline.engine.params import SamplingParams
from gemline.engine.weights import load_weights

SYSTEM = (2, *range(300, 340))  # shared by all sessions; the window is 16


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Gemma2Model:
    config = Gemma2Config.load(tiny_checkpoint)
    return Gemma2Model(config, load_weights(tiny_checkpoint, config), torch.float32)


def converse(engine: Engine, *, at_once: bool) -> list[tuple[int, ...]]:
    """Four sessions of three turns, one by one or side by side; what each came to."""
    histories = [(*SYSTEM, *range(400 + 7 * n, 400 + 7 * n + 5 + 3 * n)) for n in range(4)]
    seq_id = 0
    for turn in range(3):
        answers: dict[int, list[int]] = {}
        for n, history in enumerate(histories):
            seq_id += 1
            answers[seq_id] = []
            params = SamplingParams(max_tokens=11, temperature=0.9 * (n % 2), seed=n)
            engine.add(EngineRequest(seq_id, history, len(history), params, cache_salt=b"tenant"))
            if not at_once:
                run(engine, answers)
        run(engine, answers)
        more = tuple(range(500 + 5 * turn, 500 + 5 * turn + 4))
        histories = [(*history, *answer, *more) for history, answer in zip(histories, answers.values(), strict=True)]
    return histories


def run(engine: Engine, answers: dict[int, list[int]]) -> None:
    while engine.has_work:
        result = engine.step()
        assert not result.failures
        for event in result.tokens:
            answers[event.seq_id].append(event.token_id)
    check_blocks(engine._roster)


@pytest.fixture(scope="module")
def computed(model: Gemma2Model) -> list[tuple[int, ...]]:
    engine = Engine(model, model.config, EngineOptions(num_kv_blocks=100, prefix_cache=False))
    histories = converse(engine, at_once=False)
    assert engine.cache_use.num_hit_tokens == 0
    return histories


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("block_size", "num_kv_blocks", "max_batch_tokens"), [(16, 100, 512), (16, 17, 512), (5, 52, 23), (1, 256, 40)]
)
def test_a_found_prefix_changes_no_token(
    block_size: int,
    num_kv_blocks: int,
    max_batch_tokens: int,
    at_once: bool,
    model: Gemma2Model,
    computed: list[tuple[int, ...]],
) -> None:
    options = EngineOptions(
        num_kv_blocks=num_kv_blocks, block_size=block_size, max_batch_tokens=max_batch_tokens, max_running=8
    )
    engine = Engine(model, model.config, options)
    assert converse(engine, at_once=at_once) == computed
    assert engine.cache_use.num_hit_tokens > 0
    assert engine.num_free_blocks == engine.num_blocks
