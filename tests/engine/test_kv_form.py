"""Keys and values outside a cache: which heads, in which dtype, how exactly, and copied how often."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.hand_transfer import CONFIG
from support.still_engine import StillEngine
from torch.utils._python_dispatch import TorchDispatchMode

from gemline.engine.handover import Positions
from gemline.engine.kv_form import FLOAT8, KvForm
from gemline.errors import InvalidRequest
from gemline_kernels.scales import Scales

GLOBAL = 1
GEMMA_2B = replace(CONFIG, num_hidden_layers=26, layer_kinds=CONFIG.layer_kinds[:2] * 13)


def export(still: StillEngine, seq_id: int, at: Positions, form: KvForm) -> tuple[bytearray, Scales]:
    out = bytearray((at.stop - at.start) * form.token_bytes)
    return out, still.handover.export_kv(seq_id, GLOBAL, at, form, memoryview(out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_leave_and_come_as_if_there_were_no_others(dtype: torch.dtype) -> None:
    source, target = StillEngine(CONFIG, 12, dtype, seed=1), StillEngine(CONFIG, 12, dtype, seed=2)
    there, here = source.prefilled(12), target.reserved(12)
    untouched = target.contents(here, GLOBAL, range(12))

    for heads in (range(1, 2), range(3, 4)):
        form, at = source.form(heads=heads), Positions(2, 11)
        payload, scales = export(source, there, at, form)
        target.handover.import_kv(here, GLOBAL, at, form, scales, payload)

    now, sent = target.contents(here, GLOBAL, range(12)), source.contents(there, GLOBAL, range(12))
    assert now[:, 2:11, 1::2].equal(sent[:, 2:11, 1::2])
    assert now[:, :, ::2].equal(untouched[:, :, ::2])
    assert now[:, [0, 1, 11]].equal(untouched[:, [0, 1, 11]])


@given(st.floats(1e-30, 1e30), st.integers(0, 1000))
def test_float8_keeps_three_bits_of_each_value_down_to_a_small_part_of_the_largest(size: float, seed: int) -> None:
    """The bound: 2^-4 of the value, or half of float8's least step, 2^-10, of the largest value's 448th part."""
    source, target = StillEngine(CONFIG, 12, seed=seed), StillEngine(CONFIG, 12)
    there, here, at = source.prefilled(12), target.reserved(12), Positions(0, 12)
    for pool in source.cache.pools:
        pool.keys.mul_(size)
    form = source.form(FLOAT8)

    payload, scales = export(source, there, at, form)
    target.handover.import_kv(here, GLOBAL, at, form, scales, payload)

    both_sent, both_came = source.contents(there, GLOBAL, range(12)), target.contents(here, GLOBAL, range(12))
    for sent, came in zip(both_sent, both_came, strict=True):
        bound = torch.maximum(sent.abs() * 2**-4, sent.abs().amax() / 448 * 2**-10)
        assert ((came - sent).abs() <= bound * 1.0001).all()
    assert len(payload) == 12 * 2 * 4 * 256


@pytest.mark.parametrize("value", [0.0, 1e-44, 3e38])
def test_float8_of_equal_values_is_exact_or_nearly_so(value: float) -> None:
    source, target = StillEngine(CONFIG, 12), StillEngine(CONFIG, 12)
    there, here, at = source.prefilled(4), target.reserved(4), Positions(0, 4)
    for pool in source.cache.pools:
        pool.keys.fill_(value)
        pool.values.fill_(-value)
    payload, scales = export(source, there, at, source.form(FLOAT8))
    target.handover.import_kv(here, GLOBAL, at, target.form(FLOAT8), scales, payload)

    keys, values = target.contents(here, GLOBAL, range(4))
    assert torch.allclose(keys, torch.tensor(value), rtol=1e-6, atol=1e-40)
    assert torch.allclose(values, torch.tensor(-value), rtol=1e-6, atol=1e-40)


@pytest.mark.parametrize(
    ("dtype", "heads", "message"),
    [
        ("", range(4, 5), r"KV heads \[4, 5\) of 4"),
        ("", range(2, 2), r"KV heads \[2, 2\) of 4"),
        ("float16", None, "wire_dtype 'float16' is none of bfloat16, float8_e4m3"),
        ("float32", None, "wire_dtype 'float32' is none of"),
    ],
)
def test_a_form_that_cannot_be_had_is_refused(dtype: str, heads: range | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        KvForm.of(CONFIG, "bfloat16", dtype, heads)


@pytest.mark.parametrize(("dtype", "per_token"), [("", 104 * 1024), ("float8_e4m3", 52 * 1024)])
def test_a_token_of_2b_takes_as_many_bytes_as_the_arithmetic_says(dtype: str, per_token: int) -> None:
    assert 26 * KvForm.of(GEMMA_2B, "bfloat16", dtype).token_bytes == per_token


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of what torch's operations gave that was not there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in [*args, *(kwargs or {}).values()]:
            if isinstance(each, torch.Tensor):
                self._known.add(each.untyped_storage().data_ptr())
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self._known:
            self.num_bytes += result.untyped_storage().nbytes()
        return result


@contextmanager
def allocated() -> Iterator[list[int]]:
    """What torch and Python allocated inside: filled in at the end."""
    found: list[int] = []
    tracemalloc.start()
    with Allocated() as torch_s:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield found
        found.append(torch_s.num_bytes + tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()


@pytest.mark.parametrize("heads", [None, range(1, 3)], ids=["all heads", "two heads"])
def test_every_byte_is_copied_once_out_of_a_cache_and_once_into_the_other(heads: range | None) -> None:
    """Into a slot and out of it: nothing of a payload's size lies between."""
    source, target = StillEngine(CONFIG, 80, torch.bfloat16), StillEngine(CONFIG, 80, torch.bfloat16)
    there, here, at, form = source.prefilled(300), target.reserved(300), Positions(0, 300), source.form(heads=heads)
    slot = memoryview(bytearray(300 * form.token_bytes))
    with Allocated():  # what torch and numpy load at their first use is not meant
        source.handover.export_kv(there, GLOBAL, at, form, slot)
        target.handover.import_kv(here, GLOBAL, at, form, Scales(), slot)

    with allocated() as out:
        source.handover.export_kv(there, GLOBAL, at, form, slot)
    with allocated() as back:
        target.handover.import_kv(here, GLOBAL, at, form, Scales(), slot)

    assert max(out[0], back[0]) < slot.nbytes // 20


SCALES = Scales(0.03125, 0.125)


def moved(
    source: StillEngine, target: StillEngine, dtype: str = ""
) -> tuple[bytearray, Scales, torch.Tensor, torch.Tensor]:
    """Payload and scales of a frame, what it was made of, and what came of it."""
    there, here, at = source.prefilled(12), target.reserved(12), Positions(0, 12)
    form = target.form(dtype)
    payload, scales = export(source, there, at, form)
    target.handover.import_kv(here, GLOBAL, at, form, scales, payload)
    return payload, scales, source.contents(there, GLOBAL, range(12)), target.contents(here, GLOBAL, range(12))


def fp8_engine(scales: Scales, seed: int) -> StillEngine:
    return StillEngine(CONFIG, 12, torch.float8_e4m3fn, seed=seed, scales=scales)


def test_fp8_caches_of_equal_scales_exchange_their_bytes_as_they_are() -> None:
    source, target = fp8_engine(SCALES, 1), fp8_engine(SCALES, 2)
    payload, scales, sent, came = moved(source, target)
    assert scales == SCALES
    assert came.equal(sent)
    assert len(payload) == 12 * 2 * 4 * CONFIG.head_dim


@pytest.mark.parametrize("factor", [0.5, 2.0, 8.0])
def test_fp8_caches_of_other_scales_get_the_same_values_by_the_ratio(factor: float) -> None:
    """To the bit where the ratio is a power of two, but for the smallest values and those beyond a smaller range."""
    source, target = fp8_engine(SCALES, 1), fp8_engine(Scales(*(factor * it for it in SCALES)), 2)
    _, scales, sent, came = moved(source, target)
    assert scales == SCALES
    for part, mine, scale in zip(came, sent, target.cache.scales[GLOBAL], strict=True):
        least = scale * 2.0**-6  # from where on all three bits are kept
        assert part[mine.abs() >= least].equal(mine[mine.abs() >= least])
        assert ((part - mine).abs() <= scale * 2.0**-10).logical_or(mine.abs() >= least).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_cache_takes_what_an_fp8_one_holds_exactly(dtype: torch.dtype) -> None:
    source, target = fp8_engine(SCALES, 1), StillEngine(CONFIG, 12, dtype, seed=2)
    *_, sent, came = moved(source, target, FLOAT8)
    assert came.float().equal(sent)
    *_, sent, came = moved(source, target, "bfloat16")
    assert came.float().equal(sent)


@pytest.mark.parametrize("wire", ["bfloat16", FLOAT8])
def test_an_fp8_cache_takes_a_wide_one_s_values_with_its_own_scales(wire: str) -> None:
    """Those that are beyond its range become its largest."""
    source, target = StillEngine(CONFIG, 12, torch.bfloat16, seed=1), fp8_engine(Scales(0.004, 0.125), 2)
    for pool in source.cache.pools:
        pool.keys[0] = 1000.0
    *_, sent, came = moved(source, target, wire)
    for part, mine, scale in zip(came, sent.float(), target.cache.scales[GLOBAL], strict=True):
        largest = 448 * scale
        exact = mine.clamp(-largest, largest)
        rounding = 2**-3 if wire == FLOAT8 else 2**-4  # twice in fp8
        steps = scale * 2**-10 + (float(mine.abs().amax()) / 448 * 2**-10 if wire == FLOAT8 else 0.0)
        assert ((part - exact).abs() <= exact.abs() * rounding + steps).all()
