"""Where a prompt is prefilled, from what was measured."""

from dataclasses import replace

import pytest

from gemline.decode.placement import Here, PrefillMode, There, place

IDLE = Here(num_missing=1000, num_queued=0, num_streams=0, tokens_per_s=1000.0)
READY = There(num_tokens=1000, num_queued=0, tokens_per_s=1000.0)


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_without_a_prefill_worker_everything_is_computed_here(mode: PrefillMode) -> None:
    assert place(mode, IDLE, None) == (False, "no_worker")


@pytest.mark.parametrize("streams", [0, 5])
def test_what_the_operator_asked_for_is_done(streams: int) -> None:
    here = replace(IDLE, num_streams=streams)
    assert place("always", here, READY) == (True, "asked")
    assert place("never", here, READY) == (False, "asked")


def test_what_is_not_measured_is_tried_there() -> None:
    assert place("auto", replace(IDLE, tokens_per_s=None), READY) == (True, "not_measured")
    assert place("auto", IDLE, replace(READY, tokens_per_s=None)) == (True, "not_measured")


def test_a_short_remainder_is_computed_here_beside_any_streams() -> None:
    here = replace(IDLE, num_missing=50, num_streams=9)
    assert place("auto", here, READY) == (False, "short")
    there = replace(READY, num_tokens=51)
    assert place("auto", replace(here, num_missing=51), there) == (True, "spares_streams")


@pytest.mark.parametrize(
    ("queued_here", "queued_there", "expected"),
    [(0, 0, (False, "sooner_here")), (1, 0, (True, "sooner_there")), (5000, 6000, (False, "sooner_here"))],
)
def test_without_streams_the_shorter_queue_wins(
    queued_here: int, queued_there: int, expected: tuple[bool, str]
) -> None:
    here, there = replace(IDLE, num_queued=queued_here), replace(READY, num_queued=queued_there)
    assert place("auto", here, there) == expected


def test_streams_are_spared_unless_that_costs_the_prompt_too_much() -> None:
    here = replace(IDLE, num_streams=1)
    assert place("auto", here, replace(READY, num_queued=1000)) == (True, "spares_streams")
    assert place("auto", here, replace(READY, num_queued=1001)) == (False, "sooner_here")
