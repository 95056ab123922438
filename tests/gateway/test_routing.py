"""Which worker takes a request, from what is known of them alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.blocks import BlockCounts
from gemline.gateway.routing import MOST_AHEAD, TOKENS_PER_SEQUENCE, UNLIMITED, Candidate, Life, Wish, choose

WISH = Wish("req_1", num_tokens=1000, window=4096)
CANDIDATES = st.lists(
    st.builds(Candidate, st.builds(Life, st.uuids().map(str), st.just(1)), st.integers(0, 50)),
    max_size=6,
    unique_by=lambda candidate: candidate.life,
)


def worker(name: str, load: int = 0, free: BlockCounts = UNLIMITED, epoch: int = 1) -> Candidate:
    return Candidate(Life(name, epoch), load, 16, free)


def chosen(candidates: list[Candidate], wish: Wish = WISH, hits: dict[Candidate, int] | None = None) -> str:
    route = choose(candidates, wish, hits or {})
    assert route is not None
    return route.candidate.life.worker_id


def test_of_no_worker_none_is_chosen() -> None:
    assert choose([], WISH, {}) is None


@given(CANDIDATES, st.text())
def test_without_a_hit_nobody_has_less_load_than_the_chosen_one(candidates: list[Candidate], request_id: str) -> None:
    route = choose(candidates, WISH._replace(spread_by=request_id), {})
    assert (route is None) == (not candidates)
    assert route is None or route.candidate.load == min(candidate.load for candidate in candidates)


def test_requests_spread_over_workers_that_are_equal() -> None:
    workers = [worker(f"decode-{index}") for index in range(4)]
    counts = Counter(chosen(workers, WISH._replace(spread_by=f"req_{index}")) for index in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 50


def test_requests_that_are_spread_by_the_same_go_to_the_same_of_equal_workers_and_to_no_busier_one() -> None:
    workers = [worker(f"decode-{index}") for index in range(4)]
    wish = WISH._replace(spread_by="acme shop")
    assert len({chosen(workers, wish) for _ in range(9)}) == 1
    favorite = next(it for it in workers if it.life.worker_id == chosen(workers, wish))
    favorite.load += 1
    assert chosen(workers, wish) != favorite.life.worker_id
    cold = next(it for it in workers if it is not favorite)
    favorite.load -= 1
    assert chosen(workers, wish, hits={cold: 160}) == cold.life.worker_id  # a hit is something better


def test_a_hit_is_worth_as_many_sequences_as_it_saves_tokens() -> None:
    warm = worker("warm", load=3)
    for num_hit, expected in ((3 * TOKENS_PER_SEQUENCE - 1, "cold"), (3 * TOKENS_PER_SEQUENCE, "warm")):
        assert chosen([worker("cold", load=0), warm], hits={warm: num_hit}) == expected


def test_the_longest_hit_wins_among_equals() -> None:
    workers = [worker("a"), worker("b"), worker("c")]
    assert chosen(workers, hits=dict(zip(workers, (160, 480, 320), strict=True))) == "b"


def test_the_owner_of_a_session_comes_first_unless_it_is_swamped() -> None:
    other, owner = worker("other"), worker("owner", load=MOST_AHEAD)
    wish = WISH._replace(owner=owner)
    assert chosen([other, owner], wish, {other: 900}) == "owner"
    owner.load += 1
    assert chosen([other, owner], wish, {other: 900}) == "other"


@pytest.mark.parametrize("free", [BlockCounts(62, 1000), BlockCounts(1000, 62)])
def test_blocks_of_either_kind_that_are_missing_rule_a_worker_out(free: BlockCounts) -> None:
    full, loaded = worker("full", free=free), worker("loaded", load=9, free=BlockCounts(63, 63))
    assert chosen([full, loaded], WISH._replace(owner=full), hits={full: 900}) == "loaded"
    assert chosen([full]) == "full"  # it will wait there
    assert chosen([full, worker("fuller", load=1, free=BlockCounts(0, 0))]) == "full"


def test_of_local_blocks_a_window_is_enough() -> None:
    small = worker("a", free=BlockCounts(63, 6))
    wish = WISH._replace(window=80)
    assert chosen([small, worker("b", load=1)], wish) == "a"
    small.free = BlockCounts(63, 5)
    assert chosen([small, worker("b", load=1)], wish) == "b"
