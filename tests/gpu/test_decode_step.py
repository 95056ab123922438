"""Decode steps of a model as wide as the published ones: against the reference, and as a CUDA graph."""

from dataclasses import replace

import pytest
import torch
from support.device import DEVICE, IS_INTERPRETED
from support.published import MODELS, Model
from support.random_model import FINAL_CAP, random_pool, random_weights
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import backend
from gemline_kernels.gpu.decode_step import Buffers, DecodeStep, Graph
from gemline_kernels.layers import KeysValues, PlainLayers

BLOCK_SIZE, NUM_BLOCKS = 64, 3 if IS_INTERPRETED else 70
LENGTHS = (5, 64, 1, BLOCK_SIZE * (NUM_BLOCKS - 1), MODELS[0].window)
TOKENS = (7, 89, 2, 30, 11)
PADDING = 3
NUM_STEPS = 4
CACHES = torch.float8_e4m3fn, torch.bfloat16
NARROW = replace(MODELS[0], num_layers=2, vocab_size=min(MODELS[0].vocab_size, 32768))


def pools_of(model: Model, dtype: torch.dtype) -> list[KeysValues]:
    """Old keys and values in every slot."""
    num_blocks = len(LENGTHS) * NUM_BLOCKS
    return [random_pool(model, num_blocks, BLOCK_SIZE, dtype, DEVICE, layer) for layer in range(model.num_layers)]


def tables() -> torch.Tensor:
    """Of global layers, then of local ones."""
    random = torch.Generator().manual_seed(2)
    orders = [torch.randperm(len(LENGTHS) * NUM_BLOCKS, generator=random) for _ in range(2)]
    return torch.stack(orders).view(2, len(LENGTHS), NUM_BLOCKS).to(DEVICE)


def fill(buffers: Buffers) -> None:
    """The sequences into the first rows; every second one draws."""
    rows = slice(len(LENGTHS))
    buffers.token_ids_B[rows] = torch.tensor(TOKENS, device=DEVICE)
    buffers.lengths_B[rows] = torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE)
    buffers.global_table_BP[rows], buffers.local_table_BP[rows] = tables().int()
    buffers.choices.position[rows] = torch.tensor(LENGTHS, device=DEVICE)
    buffers.choices.temperature[rows] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0], device=DEVICE)
    buffers.choices.top_k[rows] = torch.tensor([0, 0, 0, 50, 0], dtype=torch.int32, device=DEVICE)


def buffers_of_rows() -> Buffers:
    return Buffers(len(LENGTHS) + PADDING, NUM_BLOCKS, DEVICE)


class Fresh:
    """The rows as a step of fresh tensors, as the engine makes them."""

    def __init__(self, num_before: int) -> None:
        self.context_len = torch.tensor(LENGTHS) + num_before
        self.positions_T = (self.context_len - 1).to(DEVICE)
        self.global_table_BP, self.local_table_BP = tables()
        self.global_slots_T, self.local_slots_T = (
            table_BP.gather(1, self.positions_T[:, None] // BLOCK_SIZE).squeeze(1) * BLOCK_SIZE
            + self.positions_T % BLOCK_SIZE
            for table_BP in (self.global_table_BP, self.local_table_BP)
        )
        self.query_start = torch.arange(len(LENGTHS) + 1)
        self.sample_rows = torch.arange(len(LENGTHS), device=DEVICE)


def test_steps_in_a_row_give_what_the_reference_gives() -> None:
    """In float32: keys and values nearly to the bit, and so the tokens."""
    dtype = torch.float32
    ours, theirs = (random_weights(ops, NARROW, 8192, dtype, DEVICE) for ops in (backend, reference))
    pools, expected_pools = pools_of(NARROW, dtype), pools_of(NARROW, dtype)
    buffers = buffers_of_rows()
    fill(buffers)
    buffers.choices.temperature.zero_()
    step, plain = DecodeStep(ours, pools, buffers, len(buffers.token_ids_B)), PlainLayers(reference, theirs.stack)
    token_ids_B = torch.tensor(TOKENS, device=DEVICE)
    for number in range(NUM_STEPS):
        residual_TD = theirs.embedding.rows(token_ids_B, theirs.embedding_scale)
        normed_BD = plain(residual_TD, Fresh(number), expected_pools)
        token_ids_B = theirs.head.logits(normed_BD, FINAL_CAP).argmax(-1)
        step(truncates=True)
        assert buffers.token_ids_B.tolist() == [*token_ids_B.tolist(), *[0] * PADDING]
        assert buffers.lengths_B.tolist() == [*(length + number + 1 for length in LENGTHS), *[0] * PADDING]
    for pool, expected in zip(pools, expected_pools, strict=True):
        assert_close(pool.keys, expected.keys, rtol=1e-4, atol=1e-4)
        assert_close(pool.values, expected.values, rtol=1e-4, atol=1e-4)


def test_an_fp8_cache_is_read_and_just_the_new_slots_are_written() -> None:
    """Beside a wider cache of the same old keys and values."""
    weights, fresh = random_weights(backend, NARROW, 8192, torch.bfloat16, DEVICE), Fresh(0)
    old = pools_of(NARROW, torch.float8_e4m3fn)
    narrow, wide = ([KeysValues(*(torch.stack(pool[:2]).to(dtype))) for pool in old] for dtype in CACHES)
    for pools in (narrow, wide):
        buffers = buffers_of_rows()
        fill(buffers)
        DecodeStep(weights, pools, buffers, len(buffers.token_ids_B))(truncates=True)
    for layer in range(NARROW.num_layers):
        slots_T = fresh.global_slots_T if NARROW.window_of(layer) is None else fresh.local_slots_T
        for before, after, wider in zip(*(pools[layer][:2] for pools in (old, narrow, wide)), strict=True):
            slots = [part.flatten(0, 1).float() for part in (before, after, wider)]
            new, exact = slots[1][slots_T], slots[2][slots_T]
            assert float((new - exact).norm() / exact.norm()) < 0.06
            for part in slots[1:]:
                part[slots_T] = slots[0][slots_T]
                assert part.equal(slots[0])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_a_graph_gives_the_bits_of_the_step_and_may_be_queued(model: Model, quantization: Quantization) -> None:
    model = replace(model, num_layers=2, vocab_size=NARROW.vocab_size)
    weights = random_weights(backend, model, 8192, torch.bfloat16, DEVICE, quantization)
    eager_pools, pools = pools_of(model, torch.bfloat16), pools_of(model, torch.bfloat16)
    eager, buffers = buffers_of_rows(), buffers_of_rows()
    step = DecodeStep(weights, eager_pools, eager, len(eager.token_ids_B))
    graph = Graph(DecodeStep(weights, pools, buffers, len(buffers.token_ids_B)), truncates=True)
    assert not buffers.lengths_B.any()  # it was captured with padding alone
    for pool, untouched in zip(pools, eager_pools, strict=True):
        assert pool.keys.equal(untouched.keys)
        assert pool.values.equal(untouched.values)
    for filled in (eager, buffers):
        fill(filled)
    for _ in range(NUM_STEPS):
        step(truncates=True)
        graph.replay()
        torch.cuda.synchronize()
        assert buffers.token_ids_B.equal(eager.token_ids_B)
    for _ in range(NUM_STEPS):
        graph.replay()  # none waits for the one before to be looked at
    for _ in range(NUM_STEPS):
        step(truncates=True)
        torch.cuda.synchronize()
    for name in ("token_ids_B", "lengths_B"):
        assert getattr(buffers, name).equal(getattr(eager, name))
    for pool, expected in zip(pools, eager_pools, strict=True):
        assert pool.keys.equal(expected.keys)
        assert pool.values.equal(expected.values)


@pytest.mark.usefixtures("compiled")
def test_a_replay_allocates_nothing() -> None:
    weights, buffers = random_weights(backend, NARROW, 8192, torch.bfloat16, DEVICE), buffers_of_rows()
    graph = Graph(DecodeStep(weights, pools_of(NARROW, torch.bfloat16), buffers, 6), truncates=False)
    fill(buffers)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(NUM_STEPS):
        graph.replay()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
