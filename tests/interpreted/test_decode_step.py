"""A decode step on static buffers, interpreted, against the same layers called with fresh tensors, step after step."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.backend import Backend
from gemline_kernels.gpu import backend
from gemline_kernels.gpu.decode_step import Buffers, DecodeStep
from gemline_kernels.layers import KeysValues, LayerWeights, PlainLayers, Stack, Weights
from gemline_kernels.scales import Scales

WIDTH, INNER, VOCABULARY = 48, 64, 90
HEADS, GROUPS, HEAD_DIM = 4, 2, 16
BLOCK_SIZE, WINDOW, NUM_BLOCKS = 16, 21, 4
CAP, FINAL_CAP = 50.0, 30.0


def make_weights(ops: Backend) -> Weights:
    random = torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=random) * (2 / math.sqrt(inputs))

    def norm() -> torch.Tensor:
        return torch.randn(WIDTH, generator=random) * 0.3

    def layer(window: int | None) -> LayerWeights:
        return LayerWeights(
            window=window,
            query_key_value=ops.linear(matrix((HEADS + 2 * GROUPS) * HEAD_DIM, WIDTH), None, "none"),
            attention_out=ops.linear(matrix(WIDTH, HEADS * HEAD_DIM), None, "none"),
            gate_up=ops.gated(matrix(INNER, WIDTH), matrix(INNER, WIDTH), "gelu_pytorch_tanh", "none"),
            down=ops.linear(matrix(WIDTH, INNER), None, "none"),
            post_attention_norm_D=norm(),
            pre_feedforward_norm_D=norm(),
            post_feedforward_norm_D=norm(),
            next_norm_D=norm(),
        )

    table = reference.rope_table(BLOCK_SIZE * NUM_BLOCKS, HEAD_DIM, 10000.0)
    layers = (layer(WINDOW), layer(None), layer(WINDOW))
    stack = Stack(layers, norm(), table, HEADS, GROUPS, HEAD_DIM, 0.5, CAP, 1e-6)
    embedding = ops.embedding(matrix(VOCABULARY, WIDTH), "none")
    return Weights(embedding, 6.9, stack, embedding, FINAL_CAP)


def make_pools(num_sequences: int) -> list[KeysValues]:
    """Old keys and values in every slot."""
    random = torch.Generator().manual_seed(1)
    shape = (2, num_sequences * NUM_BLOCKS, BLOCK_SIZE, GROUPS, HEAD_DIM)
    return [KeysValues(*torch.randn(shape, generator=random)) for _ in range(3)]


class Step:
    """The rows as a step of fresh tensors, as the engine makes them."""

    def __init__(self, lengths: list[int], tables: torch.Tensor) -> None:
        self.positions_T = torch.tensor(lengths) - 1
        self.global_table_BP, self.local_table_BP = tables.long()
        rows, pages = torch.arange(len(lengths)), self.positions_T // BLOCK_SIZE
        self.global_slots_T, self.local_slots_T = (
            table[rows, pages] * BLOCK_SIZE + self.positions_T % BLOCK_SIZE
            for table in (self.global_table_BP, self.local_table_BP)
        )
        self.query_start = torch.arange(len(lengths) + 1)
        self.context_len = torch.tensor(lengths)
        self.sample_rows = rows


def make_tables(num_sequences: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    orders = [torch.randperm(num_sequences * NUM_BLOCKS, generator=random) for _ in range(2)]
    return torch.stack(orders).view(2, num_sequences, NUM_BLOCKS).int()


def fill(buffers: Buffers, token_ids: list[int], lengths: list[int], tables: torch.Tensor) -> None:
    number = len(lengths)
    buffers.token_ids_B[:number] = torch.tensor(token_ids)
    buffers.lengths_B[:number] = torch.tensor(lengths, dtype=torch.int32)
    buffers.choices.position[:number] = torch.tensor(lengths)
    buffers.global_table_BP[:number], buffers.local_table_BP[:number] = tables


def three_steps(pools: list[KeysValues], expected_pools: list[KeysValues]) -> None:
    """Ours over the one, the reference's over the other: the same tokens come of both."""
    lengths, token_ids, tables = [5, 33, 1, 47], [7, 89, 2, 30], make_tables(4)
    ours, theirs = make_weights(backend), make_weights(reference)
    buffers = Buffers(6, NUM_BLOCKS, torch.device("cpu"))
    fill(buffers, token_ids, lengths, tables)
    step = DecodeStep(ours, pools, buffers, 6)  # two rows of padding
    plain = PlainLayers(reference, theirs.stack)
    for _ in range(3):
        residual_TD = theirs.embedding.rows(torch.tensor(token_ids), theirs.embedding_scale)
        normed_BD = plain(residual_TD, Step(lengths, tables), expected_pools)
        token_ids = theirs.head.logits(normed_BD, FINAL_CAP).argmax(-1).tolist()
        lengths = [length + 1 for length in lengths]
        step(truncates=False)
        assert buffers.token_ids_B.tolist() == [*token_ids, 0, 0]
        assert buffers.answers_B[:4].tolist() == token_ids
        assert buffers.lengths_B.tolist() == [*lengths, 0, 0]


def test_steps_in_a_row_give_what_fresh_tensors_and_the_reference_give() -> None:
    pools, expected_pools = make_pools(4), make_pools(4)
    three_steps(pools, expected_pools)
    for pool, expected in zip(pools, expected_pools, strict=True):
        assert_close(pool.keys, expected.keys, rtol=1e-4, atol=1e-4)
        assert_close(pool.values, expected.values, rtol=1e-4, atol=1e-4)


def test_steps_over_fp8_pools_give_what_the_reference_gives_with_their_scales() -> None:
    """Scales of each layer's own. What is written differs by a step of fp8 at most, where sums were rounded apart."""
    scales = [Scales(2.0**-layer, 2.0 ** (layer - 4)) for layer in range(3)]

    def narrow() -> list[KeysValues]:
        def part(x_NSGK: torch.Tensor, scale: float) -> torch.Tensor:
            return reference.stored(x_NSGK, torch.float8_e4m3fn, scale)

        both = zip(make_pools(4), scales, strict=True)
        return [KeysValues(part(pool.keys, of.keys), part(pool.values, of.values), of) for pool, of in both]

    pools, expected_pools = narrow(), narrow()
    three_steps(pools, expected_pools)
    for pool, expected in zip(pools, expected_pools, strict=True):
        for found, known in zip(pool[:2], expected[:2], strict=True):
            assert_close(found.float(), known.float(), rtol=0.13, atol=2**-9)
            assert float(found.view(torch.uint8).eq(known.view(torch.uint8)).float().mean()) > 0.99


@pytest.mark.parametrize("truncates", [False, True])
def test_a_row_draws_the_same_whatever_is_beside_it(truncates: bool) -> None:
    tables = make_tables(3)

    def run(rows: list[int]) -> list[list[int]]:
        buffers = Buffers(len(rows), NUM_BLOCKS, torch.device("cpu"))
        fill(buffers, [[7, 89, 2][row] for row in rows], [[5, 33, 17][row] for row in rows], tables[:, rows])
        choices = replace(
            buffers.choices,
            temperature=torch.full((len(rows),), 1.3),
            seed=torch.tensor(rows) + 5,
            top_k=torch.full((len(rows),), 20 * truncates, dtype=torch.int32),
        )
        buffers.choices = choices
        step = DecodeStep(make_weights(backend), make_pools(3), buffers, len(rows))
        found = []
        for _ in range(2):
            step(truncates=truncates)
            found.append(buffers.token_ids_B.tolist())
        return [list(column) for column in zip(*found, strict=True)]

    together = run([0, 1, 2])
    assert [run([row])[0] for row in range(3)] == together


def test_a_row_that_fails_is_marked_and_harms_no_other() -> None:
    pools, tables = make_pools(2), make_tables(2)
    good = make_pools(2)
    pools[1].values[tables[0, 0].long()] = torch.nan  # of the first sequence
    found = []
    for these in (pools, good):
        buffers = Buffers(2, NUM_BLOCKS, torch.device("cpu"))
        fill(buffers, [3, 4], [20, 30], tables)
        step = DecodeStep(make_weights(backend), these, buffers, 2)
        step(truncates=False)
        found.append(buffers.answers_B.tolist())
    assert found[0] == [-1, found[1][1]]
    assert min(found[1]) >= 0
