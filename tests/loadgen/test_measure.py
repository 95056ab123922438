"""The arithmetic of `gemline bench`, by hand."""

import pytest

from gemline.bench.measure import Objective, Record, percentile, spread_ms, summarize
from gemline.errors import ConfigurationError

# Sent at 10 s; chunks after 0.5, 0.6, 0.8 and 1.1 s; two tokens in some chunk.
HAND = Record(10.0, (10.5, 10.6, 10.8, 11.1), num_prompt_tokens=7, num_output_tokens=5)
SHORT = Record(10.0, (10.25,), num_prompt_tokens=3, num_output_tokens=1)
FAILED = Record(10.0, (10.1,), error="HTTP 503: too busy")


def test_ttft_is_the_time_to_the_first_chunk_and_latency_that_to_the_last() -> None:
    assert HAND.ttft_s == pytest.approx(0.5)
    assert HAND.latency_s == pytest.approx(1.1)


def test_itl_is_each_gap_after_the_first_chunk() -> None:
    assert HAND.itl_s == pytest.approx((0.1, 0.2, 0.3))
    assert SHORT.itl_s == ()


def test_tpot_divides_by_the_tokens_after_the_first_not_by_the_chunks() -> None:
    assert HAND.tpot_s == pytest.approx(0.6 / 4)
    assert SHORT.tpot_s is None


def test_percentiles_are_linear_between_the_nearest_values() -> None:
    assert percentile([1.0], 99) == 1.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([float(value) for value in range(101)], 99) == 99.0


def test_a_spread_is_in_milliseconds_and_none_of_nothing() -> None:
    assert spread_ms([]) is None
    assert spread_ms([0.3, 0.1, 0.2]) == pytest.approx((200, 200, 280, 298, 300))


def test_a_failed_request_counts_as_an_error_and_in_no_figure() -> None:
    summary = summarize([HAND, SHORT, FAILED, FAILED], duration_s=2.0)
    assert (summary.num_requests, summary.num_ok, summary.num_failed) == (4, 2, 2)
    assert summary.errors == {"HTTP 503: too busy": 2}
    assert (summary.prompt_tokens, summary.output_tokens) == (10, 6)
    assert (summary.request_rate, summary.output_rate, summary.total_rate) == (1.0, 3.0, 8.0)
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.mean == pytest.approx(375)
    assert summary.itl_ms is not None
    assert summary.itl_ms.max == pytest.approx(300)
    assert summary.tpot_ms == pytest.approx((150,) * 5)


def test_a_run_of_failures_alone_has_no_times() -> None:
    summary = summarize([FAILED], duration_s=1.0)
    assert summary.ttft_ms is None
    assert summary.output_rate == 0


@pytest.mark.parametrize(
    ("words", "num_good"),
    [
        ("ttft:501 itl:301", 2),
        ("ttft:499", 1),
        ("itl:299", 1),
        ("tpot:149", 1),
        ("e2el:1000", 1),
        ("ttft:1", 0),
    ],
)
def test_goodput_counts_the_requests_that_keep_every_limit(words: str, num_good: int) -> None:
    summary = summarize([HAND, SHORT, FAILED], 2.0, Objective.parse(words.split()))
    assert summary.num_good == num_good
    assert summary.goodput == num_good / 2


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:0", "ttft:nan", "speed:3", ""])
def test_a_goodput_that_says_nothing_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="--goodput"):
        Objective.parse([word])
