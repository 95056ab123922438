"""Which worker takes a request, from what is known of them alone."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gemline.gateway.routing import Candidate, choose

COUNTS = st.integers(0, 50)
CANDIDATES = st.lists(
    st.builds(Candidate, st.uuids().map(str), COUNTS, COUNTS, COUNTS), max_size=6, unique_by=lambda c: c.worker_id
)


def test_of_no_worker_none_is_chosen() -> None:
    assert choose([], "req_1") is None


@given(CANDIDATES, st.text())
def test_nobody_has_less_load_than_the_chosen_one(candidates: list[Candidate], request_id: str) -> None:
    chosen = choose(candidates, request_id)
    assert (chosen is None) == (not candidates)
    assert chosen is None or chosen.load == min(candidate.load for candidate in candidates)


@given(CANDIDATES, st.text(), st.randoms())
def test_the_choice_does_not_depend_on_the_order(candidates: list[Candidate], request_id: str, random: object) -> None:
    assert choose(candidates, request_id) == choose(candidates[::-1], request_id)


def test_what_was_sent_since_the_report_counts_as_load() -> None:
    assert Candidate("a", num_reported=2, num_submitted=3, num_in_flight=3).load == 5


def test_our_own_requests_count_even_when_the_report_does_not_know_them() -> None:
    assert Candidate("a", num_reported=0, num_submitted=0, num_in_flight=4).load == 4


def test_requests_spread_over_workers_that_are_equal() -> None:
    workers = [Candidate(f"decode-{i}", 0, 0, 0) for i in range(4)]
    chosen = Counter(choose(workers, f"req_{i}") for i in range(400))
    assert len(chosen) == 4
    assert min(chosen.values()) > 50
