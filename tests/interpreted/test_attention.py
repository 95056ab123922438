"""Triton's paged attention against attention over dense tensors in float64."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from support.device import DEVICE
from support.paged import Case, Paged, attend, build, by_hand, starts_and_lengths
from torch.testing import assert_close

from gemline_kernels.backend import Backend
from gemline_kernels.gpu import attention
from gemline_kernels.scales import Scales

BACKEND = cast(Backend, attention)
WINDOW = 40
WIDE = Case(((1, 1),), block_size=16, width=32)


def check(case: Case, seed: int = 0) -> None:
    paged = build(case, seed, DEVICE)
    check_close(case, paged, attend(BACKEND, case, paged))


def check_close(case: Case, paged: Paged, actual: torch.Tensor) -> None:
    """Weights are rounded to the dtype before they are summed, and the result once more."""
    assert actual.dtype == case.dtype
    exact = by_hand(case, paged)
    if case.dtype == torch.float32:
        assert_close(actual.double(), exact, rtol=0, atol=3e-4)
        return
    magnitude = by_hand(case, replace(paged, dense=[(keys, values.abs()) for keys, values in paged.dense]))
    excess = (actual.double() - exact).abs() - (magnitude + exact.abs()) * 2**-8
    assert float(excess.max()) <= 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, WINDOW, 1])
def test_a_mixed_batch_agrees(dtype: torch.dtype, window: int | None) -> None:
    decoding = tuple((1, context) for context in (1, 2, 16, 17, 33, 64, 65, 130))
    check(replace(WIDE, lengths=(*decoding, (70, 90), (2, 2), (5, 150)), window=window, dtype=dtype))


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("context", [3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("block_size", [16, 64, 48])
def test_lengths_around_tiles_and_blocks_agree(num_queries: int, context: int, block_size: int) -> None:
    check(replace(WIDE, lengths=((num_queries, context),), block_size=block_size))


@pytest.mark.parametrize("more", [-1, 0, 1, 2 * WINDOW])
@pytest.mark.parametrize("num_queries", [1, 2, 37])
def test_lengths_around_a_window_agree(more: int, num_queries: int) -> None:
    """Scores are small, so that no key is negligible."""
    check(replace(WIDE, lengths=((num_queries, WINDOW + more), (1, 3)), window=WINDOW, query_rms=0.2))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (8, 1), (3, 1), (6, 2), (4, 4), (20, 4)])
@pytest.mark.parametrize("num_queries", [1, 9])
def test_groups_of_any_size_agree(num_heads: int, num_kv_heads: int, num_queries: int) -> None:
    check(replace(WIDE, lengths=((num_queries, 40),), num_heads=num_heads, num_kv_heads=num_kv_heads))


@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_heads_of_every_width_agree(width: int) -> None:
    check(replace(WIDE, lengths=((1, 70), (5, 20)), width=width, scale=0.1))


@pytest.mark.parametrize("cap", [30.0, 50.0, 60.0, 100.0, None])
@pytest.mark.parametrize("query_rms", [0.05, 1.0, 400.0])
def test_scores_far_below_and_far_beyond_the_cap_agree(cap: float | None, query_rms: float) -> None:
    """Above 60, and without one, the reference takes over."""
    check(replace(WIDE, lengths=((1, 50), (4, 9)), cap=cap, query_rms=query_rms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("loud", [0, 31, 32, 99])
def test_one_key_at_the_cap_outweighs_all_others_at_minus_it(dtype: torch.dtype, loud: int) -> None:
    case = replace(WIDE, lengths=((1, 100), (2, 100)), scale=1.0, dtype=dtype)
    paged = build(case, device=DEVICE)
    paged.query_THK.fill_(2.0)
    for sequence, (keys, _) in enumerate(paged.dense):
        keys.fill_(-4.0)
        keys[loud] = 4.0
        for position in range(100):
            block = paged.block_table_BP[sequence, position // 16]
            paged.keys_NSGK[block, position % 16] = keys[position]
    check_close(case, paged, attend(BACKEND, case, paged))


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_window_holds_exactly_that_many_keys(num_queries: int) -> None:
    """The first query stands at position p: the key at p - window + 1 counts, the one before it does not."""
    case = replace(WIDE, lengths=((num_queries, 60),), window=21, query_rms=0.5)
    paged = build(replace(case, window=None), device=DEVICE)
    first = 60 - num_queries - 20
    expected = attend(BACKEND, case, paged)
    for position, counts in ((first - 1, False), (first, True)):
        block = paged.block_table_BP[0, position // 16]
        saved = paged.values_NSGK[block, position % 16].clone()
        paged.values_NSGK[block, position % 16] += 1e6
        assert attend(BACKEND, case, paged)[0].equal(expected[0]) is not counts
        paged.values_NSGK[block, position % 16] = saved


def decode(case: Case, paged: Paged, num_items: int, chunk: int = 0) -> torch.Tensor:
    """Of sequences with one query each, in so many pieces."""
    sequences = attention.Sequences.of(*starts_and_lengths(case), case.num_heads // case.num_kv_heads, DEVICE)
    plan = attention.plan_decode(sequences.decode_len, num_items, case.block_size, case.window, chunk)
    out_THK = torch.full_like(paged.query_THK, torch.nan)
    attention.decode(
        paged.query_THK,
        paged.keys_NSGK,
        paged.values_NSGK,
        paged.block_table_BP.to(torch.int32),
        sequences,
        plan,
        out_THK,
        window=case.window,
        scale=case.scale,
        cap=case.cap or 0.0,
    )
    return out_THK


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("num_items", [3, 4, 7, 40])
def test_any_number_of_pieces_gives_the_same(window: int | None, num_items: int) -> None:
    case = replace(WIDE, lengths=((1, 200), (1, 5), (1, 131)), window=window)
    paged = build(case, device=DEVICE)
    assert_close(decode(case, paged, num_items), decode(case, paged, 3), rtol=1e-5, atol=1e-5)


def test_pieces_of_a_fixed_size_give_the_same_bits_whatever_is_beside() -> None:
    case = replace(WIDE, lengths=((1, 200), (1, 500)))
    paged = build(case, device=DEVICE)
    alone = replace(case, lengths=((1, 200),))
    first = Paged(paged.query_THK[:1], paged.dense[:1], paged.keys_NSGK, paged.values_NSGK, paged.block_table_BP[:1])
    assert decode(case, paged, 80, chunk=2)[0].equal(decode(alone, first, 80, chunk=2)[0])


@pytest.mark.parametrize("window", [None, 5, WINDOW, 1000])
@pytest.mark.parametrize("num_items", [6, 7, 16, 100])
@pytest.mark.parametrize("block_size", [16, 32])
def test_a_plan_has_each_tile_once_and_no_idle_piece(window: int | None, num_items: int, block_size: int) -> None:
    lengths = torch.tensor([1, 0, 16, 17, 400, 33], dtype=torch.int32, device=DEVICE)
    plan = attention.plan_decode(lengths, num_items, block_size, window)
    tile = attention.decode_tile(block_size)
    found: dict[int, list[int]] = {}
    for sequence, first, last in plan.items.tolist():
        if sequence >= 0:
            assert first < last
            found.setdefault(sequence, []).extend(range(first, last))
    for sequence, length in enumerate(lengths.tolist()):
        start = 0 if window is None else max(0, length - window)
        assert found.get(sequence, []) == list(range(start // tile, -(-length // tile)))
        owned = plan.first_item[sequence : sequence + 2].tolist()
        assert all(plan.items[item, 0] == sequence for item in range(*owned))


def test_padding_is_left_alone() -> None:
    case = replace(WIDE, lengths=((1, 30), (1, 20)))
    paged = build(case, device=DEVICE)
    lengths = torch.tensor([30, 0], dtype=torch.int32, device=DEVICE)
    rows, no_items = (torch.tensor(ids, dtype=torch.int32, device=DEVICE) for ids in ([0, 1, 2], []))
    sequences = attention.Sequences(rows, lengths, lengths, no_items.view(0, 2), 1)
    plan = attention.plan_decode(lengths, 4, case.block_size, None)
    out_THK = torch.full_like(paged.query_THK, 7.0)
    attention.decode(
        paged.query_THK, paged.keys_NSGK, paged.values_NSGK, paged.block_table_BP.to(torch.int32), sequences, plan,
        out_THK, window=None, scale=case.scale, cap=50.0,
    )  # fmt: skip
    assert out_THK[1].eq(7.0).all()
    assert_close(out_THK[:1].double(), by_hand(case, paged)[:1], rtol=0, atol=3e-4)


def check_fp8(case: Case, paged: Paged, num_items: int, scales: Scales) -> None:
    """Sequences that all have one query, or all more, over a cache in fp8."""

    def stored(part: torch.Tensor, scale: float) -> torch.Tensor:
        return (part / scale).to(torch.float8_e4m3fn)

    dense = [
        (stored(keys, scales.keys).float() * scales.keys, stored(values, scales.values).float() * scales.values)
        for keys, values in paged.dense
    ]
    pools = stored(paged.keys_NSGK, scales.keys), stored(paged.values_NSGK, scales.values)
    sequences = attention.Sequences.of(*starts_and_lengths(case), case.num_heads // case.num_kv_heads, DEVICE)
    out_THK, table_BP = torch.full_like(paged.query_THK, torch.nan), paged.block_table_BP.to(torch.int32)
    layer: dict[str, Any] = {"window": case.window, "scale": case.scale, "cap": 50.0, "scales": scales}
    if sequences.num_decoding:
        plan = attention.plan_decode(sequences.decode_len, num_items, case.block_size, case.window)
        attention.decode(paged.query_THK, *pools, table_BP, sequences, plan, out_THK, **layer)
    else:
        attention.prefill(paged.query_THK, *pools, table_BP, sequences, out_THK, **layer)
    check_close(case, replace(paged, dense=dense), out_THK)


@pytest.mark.parametrize("num_queries", [1, 20])
def test_fp8_keys_and_values_are_scaled_back(num_queries: int) -> None:
    case = replace(WIDE, lengths=((num_queries, 90),), window=WINDOW, dtype=torch.bfloat16)
    check_fp8(case, build(case, device=DEVICE), 4, Scales(0.05, 0.125))
