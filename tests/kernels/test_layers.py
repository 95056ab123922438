"""All layers of a step: whichever rows are wanted, and the same at once as one operation after the other."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.backends import NAMES, backend_or_skip
from torch.testing import assert_close

from gemline.engine.batch import Batch
from gemline_kernels import reference
from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.layers import KeysValues, LayerWeights, PlainLayers, Stack
from gemline_kernels.selfcheck import SelfCheckFailedError, check

WIDTH, INNER, HEADS, GROUPS, HEAD_DIM, BLOCK_SIZE = 48, 72, 6, 3, 32, 4
LENGTHS = ((1, 30), (9, 21), (1, 2), (5, 5))
NUM_ROWS = sum(rows for rows, _ in LENGTHS)
LAST_ROWS = [0, 9, 10, 15]


def make_stack(backend: Backend, dtype: torch.dtype, quantization: Quantization = "none") -> Stack:
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=random)
        return values.div_(float(shape[-1]) ** 0.5).to(dtype)

    def norm() -> torch.Tensor:
        return (0.3 * torch.randn(WIDTH, generator=random)).to(dtype)

    def layer(window: int | None) -> LayerWeights:
        return LayerWeights(
            window=window,
            query_key_value=backend.linear(weight((HEADS + 2 * GROUPS) * HEAD_DIM, WIDTH), None, quantization),
            attention_out=backend.linear(weight(WIDTH, HEADS * HEAD_DIM), None, quantization),
            gate_up=backend.gated(weight(INNER, WIDTH), weight(INNER, WIDTH), "gelu_pytorch_tanh", quantization),
            down=backend.linear(weight(WIDTH, INNER), None, quantization),
            post_attention_norm_D=norm(),
            pre_feedforward_norm_D=norm(),
            post_feedforward_norm_D=norm(),
            next_norm_D=norm(),
        )

    table = reference.rope_table(64, HEAD_DIM, 10000.0)
    return Stack((layer(7), layer(None), layer(7)), norm(), table, HEADS, GROUPS, HEAD_DIM, 0.3, 50.0, 1e-6)


def make_batch(sample_rows: list[int]) -> Batch:
    """Global and local blocks in different orders."""
    num_pages = -(-max(context for _, context in LENGTHS) // BLOCK_SIZE)
    order = torch.randperm(len(LENGTHS) * num_pages, generator=torch.Generator().manual_seed(1))
    globals_BP, locals_BP = order.view(len(LENGTHS), -1), order.flip(0).view(len(LENGTHS), -1)
    rows = torch.tensor([num_rows for num_rows, _ in LENGTHS])
    positions_T = torch.cat([torch.arange(context - num_rows, context) for num_rows, context in LENGTHS])
    sequences_T = torch.arange(len(LENGTHS)).repeat_interleave(rows)
    at, offsets_T = (sequences_T, positions_T // BLOCK_SIZE), positions_T % BLOCK_SIZE
    query_start = torch.cat((torch.zeros(1, dtype=torch.int64), rows.cumsum(0)))
    context_len = torch.tensor([context for _, context in LENGTHS])
    sampled = torch.tensor(sample_rows, dtype=torch.int64)
    return Batch(
        token_ids_T=positions_T,
        positions_T=positions_T,
        global_slots_T=globals_BP[at] * BLOCK_SIZE + offsets_T,
        local_slots_T=locals_BP[at] * BLOCK_SIZE + offsets_T,
        global_table_BP=globals_BP,
        local_table_BP=locals_BP,
        query_start=query_start,
        context_len=context_len,
        sample_rows=sampled,
    )


@dataclass
class Run:
    normed_BD: torch.Tensor
    pools: list[KeysValues]


def run(layers: Any, dtype: torch.dtype, sample_rows: list[int]) -> Run:
    """Over a cache with the same earlier keys and values every time."""
    batch, random = make_batch(sample_rows), torch.Generator().manual_seed(2)
    shape = (2, int(batch.global_table_BP.max()) + 1, BLOCK_SIZE, GROUPS, HEAD_DIM)
    pools = [KeysValues(*torch.randn(shape, generator=random).to(dtype)) for _ in range(3)]
    residual_TD = torch.randn((NUM_ROWS, WIDTH), generator=random).to(dtype)
    return Run(layers(residual_TD, batch, pools), pools)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sample_rows", [LAST_ROWS, [9], [10, 3], []])
def test_rows_that_are_not_wanted_change_nothing(name: str, dtype: torch.dtype, sample_rows: list[int]) -> None:
    """The last layer leaves them out."""
    backend = backend_or_skip(name)
    layers = backend.layers(make_stack(backend, dtype))
    some, every = run(layers, dtype, sample_rows), run(layers, dtype, list(range(NUM_ROWS)))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert_close(some.normed_BD, every.normed_BD[sample_rows], rtol=0, atol=tolerance)
    for kept, expected in zip(some.pools, every.pools, strict=True):
        assert kept.keys.equal(expected.keys)
        assert kept.values.equal(expected.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("sample_rows", [LAST_ROWS, list(range(NUM_ROWS)), [3, 0], []])
def test_native_layers_are_their_operations_to_the_bit(
    dtype: torch.dtype, quantization: Quantization, sample_rows: list[int]
) -> None:
    native = backend_or_skip("native")
    stack = make_stack(native, dtype, quantization)
    layers = native.layers(stack)
    if quantization != "none" or dtype == torch.bfloat16:
        assert not isinstance(layers, PlainLayers)
    at_once, one_by_one = run(layers, dtype, sample_rows), run(PlainLayers(native, stack), dtype, sample_rows)
    assert at_once.normed_BD.equal(one_by_one.normed_BD)
    for kept, expected in zip(at_once.pools, one_by_one.pools, strict=True):
        assert kept.keys.equal(expected.keys)
        assert kept.values.equal(expected.values)


def test_native_layers_follow_the_cache_they_are_given() -> None:
    native = backend_or_skip("native")
    layers = native.layers(make_stack(native, torch.bfloat16))
    first, second = (run(layers, torch.bfloat16, LAST_ROWS) for _ in range(2))
    assert first.normed_BD.equal(second.normed_BD)
    assert first.pools[0].keys.equal(second.pools[0].keys)


def test_the_check_at_start_covers_the_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    native = backend_or_skip("native")

    right = native.layers

    def other_order(stack: Stack) -> Any:
        return right(replace(stack, layers=stack.layers[::-1]))

    monkeypatch.setattr(native, "layers", other_order)
    with pytest.raises(SelfCheckFailedError, match=r"^layers, int8"):
        check(native, torch.bfloat16, "int8", scale=0.1, cap=50.0, window=40, head_dim=32)
