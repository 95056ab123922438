"""A model divided among GPUs: collectives of NCCL within a captured step. With one GPU there is one rank, and NCCL."""

import pytest
import torch
from interpreted.test_divided_engine import SMALL
from interpreted.test_divided_processes import (
    test_ranks_in_processes_answer_as_one_device_does as test_ranks_in_processes_answer_as_one_device_does,
)
from support.divided import parts_of, weights_of
from support.rank_processes import in_processes, num_devices
from torch.testing import assert_close

from gemline.engine.kv_cache import KvCache
from gemline.engine.model import Gemma2Model
from gemline.engine.part import Part
from gemline.engine.ranks import TorchRanks
from gemline_kernels.gpu import backend
from gemline_kernels.gpu.decode_step import Buffers, DecodeStep, Graph
from gemline_kernels.layers import KeysValues
from gemline_kernels.vocabulary import Vocabulary

LENGTHS, TOKENS = (5, 16, 1, 40), (7, 89, 2, 30)
BLOCK_SIZE, NUM_BLOCKS, NUM_ROWS, NUM_STEPS = 16, 4, 6, 5
NUM_POOLED = len(LENGTHS) * NUM_BLOCKS


def fill(buffers: Buffers) -> None:
    """Sequences into the first rows: some cut off, some not."""
    rows, device = slice(len(LENGTHS)), backend.device
    buffers.token_ids_B[rows] = torch.tensor(TOKENS, device=device)
    buffers.lengths_B[rows] = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    for table_BP in (buffers.global_table_BP, buffers.local_table_BP):
        table_BP[rows] = torch.arange(NUM_POOLED, dtype=torch.int32, device=device).view(-1, NUM_BLOCKS)
    buffers.choices.position[rows] = torch.tensor(LENGTHS, device=device)
    buffers.choices.temperature[rows] = torch.tensor([0.0, 1.0, 1.0, 1.5], device=device)
    buffers.choices.top_k[rows] = torch.tensor([0, 0, 30, 0], dtype=torch.int32, device=device)
    buffers.choices.top_p[rows] = torch.tensor([1.0, 1.0, 1.0, 0.8], device=device)


def pools_of(part: Part) -> tuple[KeysValues, ...]:
    """Of one part, with nothing in them."""
    pools = KvCache(part.own_config, NUM_POOLED, NUM_POOLED, BLOCK_SIZE, torch.float32, backend.device).pools
    for pool in pools:
        pool.keys.zero_()
        pool.values.zero_()
    return pools


def graph_beside_step(ranks: TorchRanks) -> list[list[int]]:
    """The tokens of each step, on one rank, as it is launched and as it is replayed."""
    part = Part(SMALL, ranks.rank, ranks.size)
    weights = Gemma2Model(SMALL, parts_of(weights_of(SMALL), part), torch.float32, backend, ranks=ranks).weights
    vocabulary = Vocabulary(SMALL.vocab_size, ranks)
    eager_pools, pools = pools_of(part), pools_of(part)
    eager, captured = (Buffers(NUM_ROWS, NUM_BLOCKS, backend.device) for _ in range(2))
    step = DecodeStep(weights, eager_pools, eager, NUM_ROWS, vocabulary)
    graph = Graph(DecodeStep(weights, pools, captured, NUM_ROWS, vocabulary), truncates=True)
    assert not captured.lengths_B.any()  # it was captured with padding alone
    for buffers in (eager, captured):
        fill(buffers)
    told = []
    for _ in range(NUM_STEPS):
        step(truncates=True)
        graph.replay()
        torch.cuda.synchronize()
        told.append(eager.token_ids_B.tolist())
        assert captured.token_ids_B.tolist() == told[-1]
    for ours, theirs in zip(pools, eager_pools, strict=True):
        assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)
        assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-4)
    for _ in range(NUM_STEPS):
        graph.replay()  # none waits for the one before to be looked at
    for _ in range(NUM_STEPS):
        step(truncates=True)
    torch.cuda.synchronize()
    assert captured.token_ids_B.equal(eager.token_ids_B)
    return told


@pytest.mark.usefixtures("compiled")
def test_a_captured_step_of_ranks_gives_the_tokens_of_the_launched_one_on_each() -> None:
    first, *others = in_processes(num_devices(), graph_beside_step)
    assert len(first) == NUM_STEPS
    assert all(other == first for other in others)
