"""The virtual token counter: service to those who wait differs by a bounded amount, by weight, and is not saved up."""

import random
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from gemline.gateway.shares import INPUT_WEIGHT, OUTPUT_WEIGHT, Shares

MAX_INPUT, MAX_OUTPUT = 60, 40


class Batch:
    """A worker that runs so many requests at once, one token each a step; its tenants always have more waiting."""

    def __init__(self, weights: dict[str, float], num_places: int, rng: random.Random) -> None:
        self.weights, self.num_places, self.rng = weights, num_places, rng
        self.shares, self.running = Shares(), list[tuple[str, int]]()
        self.service = dict.fromkeys(weights, 0.0)
        self.largest: dict[str, tuple[int, int]] = {}
        for number, tenant in enumerate(weights):  # some send large requests, some small ones
            self.largest[tenant] = (MAX_INPUT, MAX_OUTPUT) if number % 2 else (8, 6)
            self.shares.enter(tenant, [])

    def step(self) -> None:
        while len(self.running) < self.num_places:
            tenant = self.shares.next(self.weights)
            num_input, num_output = (self.rng.randint(1, most) for most in self.largest[tenant])
            self.shares.read(tenant, num_input, self.weights[tenant])
            self.service[tenant] += INPUT_WEIGHT * num_input
            self.running.append((tenant, num_output))
        self.running = [(tenant, left - 1) for tenant, left in self.running]
        for tenant, _ in self.running:
            self.shares.wrote(tenant, 1, self.weights[tenant])
            self.service[tenant] += OUTPUT_WEIGHT
        self.running = [(tenant, left) for tenant, left in self.running if left]


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 8))
def test_service_of_any_two_that_always_wait_differs_by_at_most_twice_the_largest_step(
    seed: int, num_tenants: int, num_places: int
) -> None:
    """The bound of the paper: 2 max(w_in L_in, w_out M), with M the output tokens that a batch may still give."""
    batch = Batch({f"t{i}": 1.0 for i in range(num_tenants)}, num_places, random.Random(seed))
    bound = 2 * max(INPUT_WEIGHT * MAX_INPUT, INPUT_WEIGHT * MAX_INPUT + OUTPUT_WEIGHT * MAX_OUTPUT * num_places)
    history = []
    for _ in range(300):
        batch.step()
        history.append(dict(batch.service))
    for start in range(0, 300, 50):
        for stop in range(start, 300, 50):
            for one, other in combinations(batch.service, 2):
                gains = [history[stop][it] - history[start][it] for it in (one, other)]
                assert abs(gains[0] - gains[1]) <= bound


def test_a_weight_of_three_gets_three_times_the_service() -> None:
    batch = Batch({"a": 1.0, "b": 3.0}, 4, random.Random(1))
    for _ in range(20_000):
        batch.step()
    assert 2.9 < batch.service["b"] / batch.service["a"] < 3.1


def test_who_was_away_is_lifted_and_has_saved_up_nothing() -> None:
    shares = Shares()
    shares.enter("busy", [])
    shares.enter("away", ["busy"])
    shares.read("busy", 1000, 1.0)
    shares.enter("away", ["busy"])
    turns = []
    for _ in range(10):
        turns.append(shares.next(["busy", "away"]))
        shares.read(turns[-1], 10, 1.0)
    assert turns.count("away") == 5


def test_who_returns_to_an_empty_queue_does_not_start_from_nothing() -> None:
    shares = Shares()
    shares.enter("a", [])
    shares.read("a", 1000, 1.0)
    shares.read("a", 10, 1.0)
    shares.enter("new", [])
    shares.enter("a", ["new"])
    assert shares._served["a"] - shares._served["new"] <= 10


def test_what_others_served_counts_and_what_was_served_here_is_told_once() -> None:
    shares = Shares()
    for tenant in ("a", "b"):
        shares.enter(tenant, [])
    shares.read("a", 5, 1.0)
    shares.add_foreign({"a": 100.0, "stranger": 7.0})
    assert shares.next(["a", "b"]) == "b"
    assert shares.take_fresh() == {"a": 5.0}
    assert shares.take_fresh() == {}


def test_tenants_without_end_cost_bounded_memory() -> None:
    shares = Shares()
    for number in range(25_000):
        shares.enter(f"t{number}", [])
        shares.read(f"t{number}", number, 1.0)
    assert len(shares._served) <= 10_001


class Gateway:
    """A batch of its own, and what `follow` does, every so many steps."""

    def __init__(self, weights: dict[str, float], rng: random.Random) -> None:
        self.batch = Batch(weights, 4, rng)

    def exchange(self, other: "Gateway") -> None:
        mine, theirs = self.batch.shares.take_fresh(), other.batch.shares.take_fresh()
        self.batch.shares.add_foreign(theirs)
        other.batch.shares.add_foreign(mine)


@given(st.integers(0, 2**32), st.sampled_from([1, 5, 20]))
def test_over_two_gateways_service_differs_by_what_an_interval_adds(seed: int, every: int) -> None:
    """`a` is at both gateways, `b` and `c` at one each: what `a` gets at both counts, but for what is not told yet."""
    rng = random.Random(seed)
    first, second = Gateway({"a": 1.0, "b": 1.0}, rng), Gateway({"a": 1.0, "c": 1.0}, rng)
    service = dict.fromkeys("abc", 0.0)
    for step in range(1, 401):
        for gateway in (first, second):
            gateway.batch.step()
        if step % every == 0:
            first.exchange(second)
    for gateway in (first, second):
        for tenant, amount in gateway.batch.service.items():
            service[tenant] += amount
    in_an_interval = every * 2 * (4 * OUTPUT_WEIGHT + 4 * INPUT_WEIGHT * MAX_INPUT)
    bound = 2 * (INPUT_WEIGHT * MAX_INPUT + OUTPUT_WEIGHT * MAX_OUTPUT * 8) + in_an_interval
    assert service["a"] <= min(service["b"], service["c"]) + bound
