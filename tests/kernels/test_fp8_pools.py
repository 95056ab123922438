"""Pools of float8_e4m3fn: what is stored, and what every operation of every backend makes of it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels.test_layers import LAST_ROWS, NUM_ROWS, WIDTH, make_batch, make_stack
from support.backends import NAMES, backend_or_skip
from support.paged import Case, Paged, build, by_hand, starts_and_lengths
from torch.testing import assert_close

from gemline_kernels import reference
from gemline_kernels.layers import KeysValues, PlainLayers
from gemline_kernels.scales import Scales

FLOAT8 = torch.float8_e4m3fn
SCALES = Scales(0.25, 0.0625)


@pytest.mark.parametrize(
    ("x", "scale", "expected"),
    [
        (3.0, 1.0, 3.0),
        (17.0, 1.0, 16.0),  # between 16 and 18: the even one
        (19.0, 1.0, 20.0),  # between 18 and 20
        (17.0, 0.5, 16.0),  # 34, between 32 and 36
        (1e9, 1.0, 448.0),
        (-1e9, 2.0, -896.0),
        (2.0**-10, 1.0, 0.0),  # half of the least value: the even one, 0
        (3 * 2.0**-10, 1.0, 2.0**-8),
        (0.0, 0.5, 0.0),
    ],
)
def test_what_is_stored_is_the_nearest_value_of_the_scaled_range(x: float, scale: float, expected: float) -> None:
    found = reference.stored(torch.tensor([x]), FLOAT8, scale)
    assert found.dtype == FLOAT8
    assert float(found.float() * scale) == expected


@given(st.floats(-1e4, 1e4, width=32), st.integers(-12, 6))
def test_a_value_in_range_keeps_three_bits_and_one_beyond_becomes_the_largest(x: float, power: int) -> None:
    scale = 2.0**power
    read = float(reference.stored(torch.tensor(x), FLOAT8, scale).float() * scale)
    clamped = max(-448 * scale, min(448 * scale, x))
    assert abs(read - clamped) <= max(abs(clamped) * 2**-4, scale * 2**-10)


def in_fp8(paged: Paged, scales: Scales) -> Paged:
    """Stored with those scales; `dense` becomes what is read."""
    pools = (
        reference.stored(paged.keys_NSGK, FLOAT8, scales.keys),
        reference.stored(paged.values_NSGK, FLOAT8, scales.values),
    )

    def read(part: torch.Tensor, scale: float) -> torch.Tensor:
        return reference.stored(part, FLOAT8, scale).float() * scale

    dense = [(read(keys, scales.keys), read(values, scales.values)) for keys, values in paged.dense]
    return replace(paged, dense=dense, keys_NSGK=pools[0], values_NSGK=pools[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("name", NAMES)
def test_attention_reads_keys_and_values_times_their_scales(name: str, window: int | None, dtype: torch.dtype) -> None:
    """Against float64; the poison of slots that nobody sees stays NaN in fp8 too."""
    backend = backend_or_skip(name)
    case = Case(((1, 30), (9, 21), (1, 2), (1, 17), (5, 5)), window=window, width=32, dtype=dtype)
    paged = in_fp8(build(case), SCALES)
    found = backend.paged_attention(
        paged.query_THK,
        paged.keys_NSGK,
        paged.values_NSGK,
        paged.block_table_BP,
        *starts_and_lengths(case),
        window=case.window,
        scale=case.scale,
        cap=case.cap,
        scales=SCALES,
    )
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2**-6
    assert_close(found.double(), by_hand(case, paged), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_are_rounded_once_into_the_named_slots_alone(name: str, dtype: torch.dtype) -> None:
    backend, random = backend_or_skip(name), torch.Generator().manual_seed(0)
    projected_TMK = (torch.randn(3, 8, 32, generator=random) * 4).to(dtype)  # 4 query heads, 2 of keys, 2 of values
    table, positions_T = reference.rope_table(40, 32, 10000.0), torch.tensor([0, 39, 7])
    slots_T = torch.tensor([9, 0, 4])
    pools = KeysValues(*torch.full((2, 3, 4, 2, 32), 7.0).to(FLOAT8))

    query_THK = backend.rope_write(projected_TMK, table, positions_T, pools.keys, pools.values, slots_T, 4, SCALES)

    expected = projected_TMK.double()
    half = torch.arange(16, dtype=torch.float64)
    angle_T1K = positions_T[:, None, None] * 10000.0 ** (-half / 16)
    first, second = expected.chunk(2, dim=-1)
    turned = torch.cat(
        (first * angle_T1K.cos() - second * angle_T1K.sin(), second * angle_T1K.cos() + first * angle_T1K.sin()), dim=-1
    )
    tolerance = 1e-4 if dtype == torch.float32 else 2**-6
    assert_close(query_THK.double(), turned[:, :4], rtol=tolerance, atol=tolerance)
    others = [slot for slot in range(12) if slot not in slots_T]
    for pool, exact, scale in zip(pools[:2], (turned[:, 4:6], expected[:, 6:]), SCALES, strict=True):
        read = pool.float().flatten(0, 1)
        assert_close(read[slots_T].double() * scale, exact, rtol=2**-4, atol=scale * 2**-10)
        assert read[others].eq(7.0).all()
    assert (
        pools[1]
        .flatten(0, 1)[slots_T]
        .float()
        .equal(reference.stored(projected_TMK[:, 6:], FLOAT8, SCALES.values).float())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_layers_over_fp8_pools_are_the_operations_in_their_order(name: str, dtype: torch.dtype) -> None:
    """Also where a backend has all layers in one call; and they are near those over pools of the model's dtype."""
    backend, random = backend_or_skip(name), torch.Generator().manual_seed(2)
    stack, batch = make_stack(backend, dtype, "int8"), make_batch(LAST_ROWS)
    shape = (int(batch.global_table_BP.max()) + 1, 4, 3, 32)
    wide = [[torch.randn(shape, generator=random).to(dtype) for _ in range(2)] for _ in stack.layers]
    residual_TD = torch.randn((NUM_ROWS, WIDTH), generator=random).to(dtype)

    def narrow() -> list[KeysValues]:
        parts = [[reference.stored(x, FLOAT8, scale) for x, scale in zip(pair, SCALES, strict=True)] for pair in wide]
        return [KeysValues(keys, values, SCALES) for keys, values in parts]

    pools, plain_pools = narrow(), narrow()
    found = backend.layers(stack)(residual_TD, batch, pools)
    expected = PlainLayers(backend, stack)(residual_TD, batch, plain_pools)
    assert found.equal(expected)
    for pool, plain in zip(pools, plain_pools, strict=True):
        assert pool.keys.view(torch.uint8).equal(plain.keys.view(torch.uint8))
        assert pool.values.view(torch.uint8).equal(plain.values.view(torch.uint8))
    exact = backend.layers(stack)(residual_TD, batch, [KeysValues(keys, values) for keys, values in wide])
    error = float((found.double() - exact.double()).norm() / exact.double().norm())
    assert 0 < error < 0.1
