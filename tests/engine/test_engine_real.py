"""The engine over a real, tiny Gemma 2: whatever the batch, the chunks, the blocks and the path, the same tokens."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.events import TokenEvent
from gemline.engine.model import Gemma2Model
from gemline.engine.params import SamplingParams
from gemline.engine.weights import load_weights
from gemline.errors import CheckpointError

Drain = Callable[[Engine], dict[int, list[int]]]
NewEngine = Callable[..., Engine]
OPTIONS = EngineOptions(num_kv_blocks=200)
LENGTHS = {1: 1, 2: 5, 3: 16, 4: 17, 5: 40, 6: 90}  # of the prompts; the window is 16
GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
SEEDED = SamplingParams(max_tokens=20, temperature=0.8, top_p=0.95, top_k=50, seed=2**63 + 5, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Gemma2Model:
    config = Gemma2Config.load(tiny_checkpoint)
    return Gemma2Model(config, load_weights(tiny_checkpoint, config), torch.float32)


@pytest.fixture
def new_engine(model: Gemma2Model) -> NewEngine:
    def make(**changes: Any) -> Engine:
        return Engine(model, model.config, replace(OPTIONS, **changes))

    return make


def request(seq_id: int, params: SamplingParams = GREEDY, hold: bool = False) -> EngineRequest:
    length = LENGTHS[seq_id]
    generator = torch.Generator().manual_seed(seq_id)
    token_ids = (2, *torch.randint(217, 1024, (length - 1,), generator=generator).tolist())
    return EngineRequest(seq_id, token_ids, length, params, hold)


@pytest.fixture(scope="module")
def alone(model: Gemma2Model) -> dict[int, list[int]]:
    """The greedy answer of each sequence on an engine of its own, its prompt in one chunk."""
    answers = {}
    for seq_id in LENGTHS:
        engine = Engine(model, model.config, OPTIONS)
        engine.add(request(seq_id))
        answers[seq_id] = [event.token_id for _ in range(20) for event in engine.step().tokens]
    return answers


def test_the_answers_are_not_trivial(alone: dict[int, list[int]]) -> None:
    assert all(len(answer) == 20 for answer in alone.values())
    assert len({tuple(answer) for answer in alone.values()}) == len(alone)


def test_the_batch_changes_no_token(new_engine: NewEngine, drain: Drain, alone: dict[int, list[int]]) -> None:
    engine = new_engine()
    for seq_id in LENGTHS:
        engine.add(request(seq_id))
        engine.step()  # each begins while those before it are at work
    later = drain(engine)
    assert {seq_id: answer[-len(later[seq_id]) :] for seq_id, answer in alone.items()} == later
    assert engine.num_free_blocks == engine.num_blocks


@pytest.mark.parametrize("max_batch_tokens", [1, 2, 3, 7, 15, 16, 17, 31, 89, 90, 91])
def test_the_size_of_chunks_changes_no_token(
    max_batch_tokens: int, new_engine: NewEngine, drain: Drain, alone: dict[int, list[int]]
) -> None:
    engine = new_engine(max_batch_tokens=max_batch_tokens)
    for seq_id in (6, 4):
        engine.add(request(seq_id))
    assert drain(engine) == {seq_id: alone[seq_id] for seq_id in (6, 4)}


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
def test_the_size_of_blocks_changes_no_token(
    block_size: int, new_engine: NewEngine, drain: Drain, alone: dict[int, list[int]]
) -> None:
    engine = new_engine(block_size=block_size, num_kv_blocks=1000 // block_size)
    for seq_id in LENGTHS:
        engine.add(request(seq_id))
    assert drain(engine) == alone


def test_preemption_changes_no_token(new_engine: NewEngine) -> None:
    def run(engine: Engine) -> tuple[dict[int, list[int]], int]:
        answers: dict[int, list[int]] = {seq_id: [] for seq_id in LENGTHS}
        num_preempted = 0
        for seq_id in LENGTHS:
            engine.add(request(seq_id, replace(GREEDY, max_tokens=120)))
        while engine.has_work:
            result = engine.step()
            num_preempted += result.num_preempted
            for event in result.tokens:
                answers[event.seq_id].append(event.token_id)
        return answers, num_preempted

    expected, none = run(new_engine(num_kv_blocks=200))
    answers, num_preempted = run(new_engine(num_kv_blocks=16))
    assert none == 0 < num_preempted
    assert answers == expected


def hand_over(source: Engine, target: Engine, prompt: EngineRequest) -> TokenEvent:
    """Prefills there, decodes here: keys and values move chunk by chunk, local layers' only within the window."""
    source.add(replace(prompt, hold=True))
    assert target.reserve(prompt)
    ranges, sent = source.kv_ranges(len(prompt.token_ids)), 0
    while True:
        result = source.step()
        computed = result.prefills[0].num_computed
        for layer, (start, _) in enumerate(ranges):
            if max(start, sent) < computed:
                piece = (layer, max(start, sent), computed)
                target.import_kv(prompt.seq_id, *piece, source.export_kv(prompt.seq_id, *piece))
        sent = computed
        if result.tokens:
            source.cancel(prompt.seq_id)
            return target.finish_import(prompt.seq_id, result.tokens[0].token_id, result.tokens[0].logprobs)


@pytest.mark.parametrize("params", [GREEDY, SEEDED])
def test_prefill_elsewhere_changes_no_token(params: SamplingParams, new_engine: NewEngine, drain: Drain) -> None:
    colocated = new_engine()
    for seq_id in LENGTHS:
        colocated.add(request(seq_id, params))
    expected = drain(colocated)
    source, target = new_engine(max_batch_tokens=13), new_engine(block_size=5)
    first = {seq_id: hand_over(source, target, request(seq_id, params)).token_id for seq_id in LENGTHS}
    rest = drain(target)
    assert {seq_id: [first[seq_id], *rest[seq_id]] for seq_id in LENGTHS} == expected
    assert source.num_free_blocks == source.num_blocks
    assert target.num_free_blocks == target.num_blocks


def test_a_seeded_answer_begun_elsewhere_goes_on_exactly(new_engine: NewEngine, drain: Drain) -> None:
    whole = new_engine()
    whole.add(request(5, SEEDED))
    expected = drain(whole)[5]
    for num_before in (1, 7, 19):
        engine = new_engine()
        begun = request(5, SEEDED)
        engine.add(replace(begun, token_ids=(*begun.token_ids, *expected[:num_before])))
        assert drain(engine)[5] == expected[num_before:]


def test_bfloat16_is_served(tiny_checkpoint: Path, drain: Drain) -> None:
    engine = Engine.load(tiny_checkpoint, replace(OPTIONS, dtype="bfloat16"))
    target = Engine.load(tiny_checkpoint, replace(OPTIONS, dtype="bfloat16"))
    engine.add(request(5))
    expected = drain(engine)[5]
    first = hand_over(engine, target, request(5)).token_id
    assert [first, *drain(target)[5]] == expected


def test_a_checkpoint_is_loaded_with_its_revision(tiny_checkpoint: Path) -> None:
    engine = Engine.load(tiny_checkpoint, EngineOptions(max_running=2))
    assert len(engine.revision) == 64
    assert engine.config.sliding_window == 16
    assert engine.num_blocks == engine.num_free_blocks == (2 * 256 // 16, 2 * 256 // 16)
    assert not engine.has_work


def test_weights_that_give_no_numbers_are_refused_at_load(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = Gemma2Config.load(tiny_checkpoint)
    weights = dict(load_weights(tiny_checkpoint, config))
    weights["model.layers.1.mlp.down_proj.weight"] = torch.full(
        (config.hidden_size, config.intermediate_size), torch.nan
    )
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=f"{tmp_path}: these weights give no first token: logits that are not fin"
    ):
        Engine.load(tmp_path, OPTIONS)
