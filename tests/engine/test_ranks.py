"""A model that is divided among ranks gives what it gives whole: logits, tokens, whatever is asked for."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from support.divided import CONFIG, OPTIONS, divided_engine, parts_of, weights_of, whole_engine
from support.thread_ranks import ThreadRanks, together

from gemline.engine.batch import Batch, Score
from gemline.engine.checkpoint import open_checkpoint
from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine
from gemline.engine.events import Logprobs
from gemline.engine.kv_cache import KvCache
from gemline.engine.model import Gemma2Model
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.ranks import RanksBroken, TorchRanks
from gemline.engine.requests import EngineRequest
from gemline.engine.weights import Weights
from gemline.errors import ConfigurationError
from gemline_kernels import reference
from gemline_kernels.vocabulary import Vocabulary

MIXED = (
    SamplingParams(12, temperature=0.0),
    SamplingParams(12, temperature=0.9, seed=7),
    SamplingParams(12, temperature=1.3, top_k=9, top_p=0.8, seed=8, num_logprobs=3),
    SamplingParams(12, temperature=0.7, min_p=0.05, repetition_penalty=1.4, logit_bias={5: 2.0}, seed=9),
    SamplingParams(12, temperature=0.0, num_logprobs=2, prompt_logprobs=True),
)


Answers = dict[int, list[tuple[int, list[Logprobs]]]]


def answers(engine: Engine) -> Answers:
    found: Answers = {}
    for seq_id, params in enumerate(MIXED):
        prompt = tuple((seq_id * 31 + 7 * at) % 330 for at in range(23))
        engine.add(EngineRequest(seq_id, prompt, len(prompt), params))
        found[seq_id] = []
    while engine.has_work:
        for event in engine.step().tokens:
            said = [event.logprobs] if event.logprobs is not None else []
            found[event.seq_id].append((event.token_id, [*said, *event.prompt_logprobs]))
    return found


@pytest.mark.parametrize(("num_ranks", "groups"), [(1, 2), (2, 2), (4, 2), (4, 8), (8, 1)])
def test_ranks_answer_as_one_does(num_ranks: int, groups: int) -> None:
    """Greedy and drawn, truncated and penalised, with log-probabilities of answer and prompt."""
    config = replace(CONFIG, num_key_value_heads=groups)
    whole = answers(whole_engine(config))
    divided = divided_engine(num_ranks, config, answers)
    for seq_id, expected in whole.items():
        assert [token_id for token_id, _ in divided[seq_id]] == [token_id for token_id, _ in expected]
        for (_, mine), (_, theirs) in zip(divided[seq_id], expected, strict=True):
            assert len(mine) == len(theirs)
            for one, other in zip(mine, theirs, strict=True):
                assert one.token_ids == other.token_ids
                assert one.values == pytest.approx(other.values, abs=1e-4)


def test_no_row_of_logits_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a token nor for log-probabilities of answer and prompt. What top_p needs is among the likeliest."""

    def refuse(_: Vocabulary, part_RV: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"{part_RV.shape} were to cross")

    monkeypatch.setattr(Vocabulary, "whole", refuse)
    assert all(divided_engine(2, CONFIG, answers).values())


def test_a_step_that_fails_on_rank_0_breaks_the_group_and_is_not_tried_again() -> None:
    """The others are in the midst of it: what rank 0 said next would meet them there."""

    class Broken(Gemma2Model):
        num_tries = 0

        def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
            self.num_tries += 1
            raise MemoryError("no room for activations")

    def run(ranks: ThreadRanks) -> int:
        part = Part(CONFIG, ranks.rank, ranks.size)
        if ranks.rank:
            ranks.gather(torch.tensor(2**40))  # what is free, of which the pools are made
            assert ranks.hear() is not None
            return 0
        model = Broken(CONFIG, parts_of(weights_of(CONFIG), part), torch.float32, reference, ranks=ranks)
        engine = Engine(model, CONFIG, OPTIONS, "revision", ranks=ranks)
        engine.add(EngineRequest(1, (2, 3, 4), 3, MIXED[0]))
        engine.add(EngineRequest(2, (2, 3, 5), 3, MIXED[0]))
        with pytest.raises(RanksBroken, match="no room for activations"):
            engine.step()
        return model.num_tries

    assert together(2, run) == [1, 0]


def test_each_rank_reads_its_slices_alone(tiny_checkpoint: Path) -> None:
    config = Gemma2Config.load(tiny_checkpoint)
    whole = Weights(open_checkpoint(tiny_checkpoint, config))
    parts = [Weights(open_checkpoint(tiny_checkpoint, config), "none", Part(config, rank, 2)) for rank in range(2)]
    for name in whole:
        dimension = 1 if "o_proj" in name or "down_proj" in name else 0
        halves = [part[name] for part in parts]
        if "norm" in name:
            assert all(torch.equal(half, whole[name]) for half in halves)
        else:
            assert torch.equal(torch.cat(halves, dim=dimension), whole[name]), name


def test_a_degree_that_does_not_divide_is_refused_before_anything_is_read(tiny_checkpoint: Path) -> None:
    config = Gemma2Config.load(tiny_checkpoint)
    with pytest.raises(ConfigurationError, match="tensor_parallel 3 does not divide num_attention_heads 4"):
        Part(config, 0, 3)


@pytest.mark.slow
def test_over_processes_and_gloo_logits_are_within_rounding(tmp_path: Path) -> None:
    """Each rank a process: what it computes and what crosses is real."""
    expected = scored(Gemma2Model(CONFIG, weights_of(CONFIG), torch.float32, reference), CONFIG)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once for all six
    for num_ranks in (2, 4):
        directory = tmp_path / str(num_ranks)
        directory.mkdir()
        ranks = [context.Process(target=gloo_rank, args=(rank, num_ranks, directory)) for rank in range(num_ranks)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        found = torch.cat([load_file(directory / f"logits-{rank}")["part"] for rank in range(num_ranks)], dim=-1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def gloo_rank(rank: int, num_ranks: int, directory: Path) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=num_ranks)
    ranks = TorchRanks()
    part = Part(CONFIG, ranks.rank, ranks.size)
    model = Gemma2Model(CONFIG, parts_of(weights_of(CONFIG), part), torch.float32, reference, ranks=ranks)
    save_file({"part": scored(model, part.own_config)}, directory / f"logits-{rank}")
    dist.destroy_process_group()


def scored(model: Gemma2Model, config: Gemma2Config) -> torch.Tensor:
    """Logits of every position of a prompt, of this rank's tokens."""
    num_tokens, block_size = 40, 4
    num_blocks = num_tokens // block_size
    cache = KvCache(config, num_blocks, num_blocks, block_size, torch.float32)
    token_ids_T = (torch.arange(num_tokens) * 37) % CONFIG.vocab_size
    return model.forward(Batch.of_one(token_ids_T, num_blocks), cache)
