"""The autoscaling policy: what it may never do, whatever the workers say, and what each signal brings about."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemline.errors import ConfigurationError
from gemline.serve.autoscaling import MOST_AT_ONCE, Memory, Scaling, decide
from gemline.signals import Busyness, Recent, Signals

DECODE = Scaling("decode", 1, 8, ttft_slo_s=2.0, itl_slo_s=0.1, up_after_s=5.0, down_after_s=60.0)
PREFILL = replace(DECODE, role="prefill")
IDLE = Signals(max_running=16, kv_bytes=1000, free_kv_bytes=1000, tokens_per_s=1000.0)

numbers = st.floats(0, 1e6, allow_nan=False)
any_signals = st.builds(
    lambda free, **others: Signals(**others, kv_bytes=1000, free_kv_bytes=free),
    free=st.integers(0, 1000),
    num_running=st.integers(0, 64),
    num_waiting=st.integers(0, 64),
    max_running=st.integers(0, 64),
    queued_tokens=st.integers(0, 10**6),
    tokens_per_s=numbers,
    busy_share=st.floats(0, 1),
    ttft_s=numbers,
    itl_s=numbers,
)
roles = st.sampled_from([DECODE, PREFILL, replace(DECODE, prefills=True)])


@given(roles, st.lists(st.lists(any_signals, max_size=10), max_size=30), st.integers(1, 8))
def test_the_number_never_leaves_its_bounds_nor_grows_faster_than_allowed(
    scaling: Scaling, told: list[list[Signals]], num: int
) -> None:
    memory = Memory()
    for turn, signals in enumerate(told):
        decided, memory = decide(signals, num, scaling, memory, 7.0 * turn)
        assert scaling.min_replicas <= decided <= scaling.max_replicas
        assert decided <= MOST_AT_ONCE * num + 1
        num = decided


@given(roles, st.lists(any_signals, min_size=1, max_size=8), st.integers(1, 8))
def test_nothing_changes_before_its_time(scaling: Scaling, signals: list[Signals], num: int) -> None:
    memory = Memory()
    for now_s in (0.0, 1.0, 4.9):
        decided, memory = decide(signals, num, scaling, memory, now_s)
        assert decided == num


@settings(max_examples=40)
@given(st.integers(0, 90), st.integers(1, 8))
def test_under_a_load_that_stays_the_number_changes_until_it_fits_and_never_again(total: int, start: int) -> None:
    num, memory, seen = start, Memory(), []
    for second in range(400):
        each = Signals(num_running=0, max_running=16, kv_bytes=1000, free_kv_bytes=1000)
        signals = [replace(each, num_running=total // num + (i < total % num)) for i in range(num)]
        num, memory = decide(signals, num, DECODE, memory, float(second))
        seen.append(num)
    assert len(set(seen[200:])) == 1
    ups = [after > before for before, after in pairwise(seen) if after != before]
    assert len(set(ups)) <= 1, f"{seen} goes up and down"


@given(roles, any_signals, st.integers(2, 8))
def test_more_work_never_means_fewer_workers(scaling: Scaling, signals: Signals, num: int) -> None:
    more = replace(
        signals,
        num_running=signals.num_running + 5,
        queued_tokens=signals.queued_tokens + 500,
        busy_share=min(1.0, signals.busy_share + 0.2),
        free_kv_bytes=signals.free_kv_bytes // 2,
    )
    memory = Memory(up_since_s=0.0, down_since_s=0.0)
    few, many = (decide([told] * num, num, scaling, memory, 90.0).num_replicas for told in (signals, more))
    assert few <= many


@given(any_signals, st.integers(2, 8))
def test_a_role_that_is_late_is_never_made_smaller(signals: Signals, num: int) -> None:
    late = replace(signals, itl_s=0.2, ttft_s=9.0)
    for scaling in (DECODE, PREFILL):
        assert decide([late] * num, num, scaling, Memory(down_since_s=0.0), 90.0).num_replicas >= num


@pytest.mark.parametrize(
    ("scaling", "told", "num"),
    [
        (DECODE, {"num_running": 16, "num_waiting": 8}, 2),
        (DECODE, {"free_kv_bytes": 50}, 2),
        (DECODE, {"num_running": 10, "itl_s": 0.15}, 2),
        (DECODE, {"num_running": 3, "ttft_s": 60.0, "queued_tokens": 90_000}, 1),  # that is for prefill workers
        (replace(DECODE, prefills=True), {"num_running": 3, "queued_tokens": 2000}, 2),
        (PREFILL, {"busy_share": 0.9}, 2),
        (PREFILL, {"queued_tokens": 1900}, 2),
        (PREFILL, {"busy_share": 0.5, "ttft_s": 3.0}, 2),
        (PREFILL, {"num_running": 16, "itl_s": 9.0}, 1),  # and that for decode workers
        (PREFILL, {"busy_share": 0.1, "ttft_s": 3.0}, 1),  # one long prompt takes as long on any worker
        (DECODE, {"num_running": 1, "itl_s": 3.0}, 1),  # and one stream, too
    ],
)
def test_each_role_grows_by_what_it_runs_out_of(scaling: Scaling, told: dict[str, Any], num: int) -> None:
    memory = Memory(settled_since_s=-90.0)
    memory = decide([replace(IDLE, **told)], 1, scaling, memory, 0.0).memory
    assert decide([replace(IDLE, **told)], 1, scaling, memory, 5.0).num_replicas == num


def test_fewer_workers_come_after_a_while_and_as_many_as_were_needed_meanwhile() -> None:
    num, memory = 6, Memory()
    for second in range(60):
        signals = replace(IDLE, num_running=6 if second == 30 else 0)  # needs 4 for a moment
        num, memory = decide([signals] * 6, num, DECODE, memory, float(second))
        assert num == 6
    assert decide([IDLE] * 6, num, DECODE, memory, 60.0).num_replicas == 4


def test_while_workers_start_no_more_are_started() -> None:
    full = replace(IDLE, num_running=16, num_waiting=16)
    memory = Memory(up_since_s=0.0)
    assert decide([full] * 2, 4, DECODE, memory, 90.0).num_replicas == 4


def test_workers_that_say_nothing_change_nothing() -> None:
    assert decide([], 3, DECODE, Memory(down_since_s=0.0, up_since_s=0.0), 999.0).num_replicas == 3


def test_what_a_worker_was_late_with_is_kept_from_it_for_half_an_hour() -> None:
    late = replace(IDLE, num_running=10, itl_s=0.12)
    memory = decide([late] * 2, 2, DECODE, Memory(settled_since_s=-90.0), 0.0).memory
    num, memory = decide([late] * 2, 2, DECODE, memory, 5.0)
    assert num == 3
    assert memory.learned == pytest.approx(10 / 0.12 * 0.85)  # tokens a second
    in_time = replace(IDLE, num_running=4, itl_s=0.07)  # as many tokens a second; by places two workers would do
    for second in range(5, 1800, 5):
        num, memory = decide([in_time] * 3, num, DECODE, memory, float(second))
        assert num == 3
    for second in range(1810, 1880, 5):
        num, memory = decide([in_time] * 3, num, DECODE, memory, float(second))
    assert num == 2


def test_latencies_of_before_there_were_more_workers_teach_nothing() -> None:
    late = replace(IDLE, num_running=10, itl_s=0.15)
    num, memory = 2, Memory()
    for second in range(15):
        num, memory = decide([late] * 2, num, DECODE, memory, float(second))
    assert (num, memory.learned) == (2, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_replicas": 0}, "decode workers 0-8"),
        ({"min_replicas": 9}, "decode workers 9-8"),
        ({"ttft_slo_s": 0.0}, "ttft_slo_s is 0.0"),
        ({"itl_slo_s": float("nan")}, "itl_slo_s is nan"),
        ({"down_after_s": -1.0}, "down_after_s is -1.0"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        replace(DECODE, **options)


def test_latencies_are_forgotten_and_high_ones_told() -> None:
    recent = Recent(window_s=10.0)
    assert recent.high(0.0) == 0.0
    for index in range(100):
        recent.add(float(index), at_s=0.0)
    assert recent.high(5.0) == 94.0
    recent.add(1.0, at_s=15.0)
    assert recent.high(16.0) == 1.0


def test_business_is_a_share_of_the_time_since_it_was_asked() -> None:
    busyness = Busyness()
    busyness.take(100.0)
    busyness.add(1.0)
    busyness.add(0.5)
    assert busyness.take(102.0) == 0.75
    assert busyness.take(103.0) == 0.0
