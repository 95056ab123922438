"""Times as operators write them."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.cluster.moments import moment_ms, span_s
from gemline.errors import ConfigurationError


@pytest.mark.parametrize(("text", "seconds"), [("45", 45), ("1.5h", 5400), ("90m", 5400), ("30d", 2592000), ("0s", 0)])
def test_a_span_has_a_unit_or_is_seconds(text: str, seconds: float) -> None:
    assert span_s(text, "grace") == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1w", "1 d", "1e9", "nan", "1d\n", "9" * 30])
def test_what_is_no_span_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="grace"):
        span_s(text, "grace")


@pytest.mark.parametrize(
    "text", ["2026-11-01", "2026-11-01T00:00:00Z", "2026-11-01T01:00:00+01:00", "1793491200", "1793491200.0"]
)
def test_a_moment_is_of_utc_unless_it_says_another_zone(text: str) -> None:
    assert moment_ms(text, "since") == datetime(2026, 11, 1, tzinfo=UTC).timestamp() * 1000


def test_a_moment_may_be_so_long_ago() -> None:
    assert abs(moment_ms("2h", "since") / 1e3 - (time.time() - 7200)) < 60


@given(st.text(max_size=40))
def test_any_other_text_is_refused_by_name(text: str) -> None:
    try:
        assert 0 <= moment_ms(text, "since") < 2**53
    except ConfigurationError as error:
        assert error.param == "since"


def test_a_moment_before_1970_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="before 1970"):
        moment_ms("1969-12-31", "since")
