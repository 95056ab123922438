"""Pacing on machines that are formulas: what it allows, and what streams and prompts see of it."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.pacing import Load, Pacer

MAX_TOKENS = 512
Pace = Callable[[Load], int]


@dataclass(frozen=True)
class Machine:
    """A step reads its weights or computes its tokens, whichever takes longer; milliseconds."""

    read_ms: float
    token_ms: float
    other_ms: float = 1.0

    def step_ms(self, num_tokens: int) -> float:
        return max(self.read_ms, self.token_ms * num_tokens) + self.other_ms


# About what two cores with AVX-512 take for the bench checkpoint.
BF16, INT8, INT4 = Machine(20, 1.65), Machine(11, 0.6), Machine(6.5, 0.7)
# Others, at any speed: what a step does beside its tokens takes as long as 3 to 40 of them.
MACHINES = st.builds(
    lambda token_ms, read, other: Machine(read * token_ms, token_ms, other * token_ms),
    st.floats(0.05, 5),
    st.floats(3, 35),
    st.floats(0, 5),
)


@dataclass
class Request:
    start_ms: float
    prompt: int
    answer: int
    arrival: int = 0
    began: int | None = None  # how many had arrived before the first step that it decoded in
    times_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    requests: list[Request]
    end_ms: float

    @property
    def tokens_per_s(self) -> float:
        return sum(request.answer for request in self.requests) / self.end_ms * 1e3

    @property
    def median_ttft_ms(self) -> float:
        return sorted(request.times_ms[0] - request.start_ms for request in self.requests)[len(self.requests) // 2]

    @property
    def drained_ms(self) -> float:
        """When the last request had its first token."""
        return max(request.times_ms[0] for request in self.requests)

    def p99_itl_ms(self, start_ms: float = 0.0, stop_ms: float = math.inf) -> float:
        """Of the intervals that lie between the two times."""
        pairs = [pair for request in self.requests for pair in pairwise(request.times_ms)]
        gaps = sorted(after - before for before, after in pairs if before >= start_ms and after <= stop_ms)
        return gaps[int(len(gaps) * 0.99)]


def simulate(machine: Machine, requests: Sequence[Request], pacer: Pacer | None = None, noise: float = 0.0) -> Outcome:
    """Prompts are served as the scheduler does, in the order of their arrival; without a pacer as fast as can be."""
    generator = random.Random(1)
    now_ms, num_arrived = 0.0, 0
    coming = sorted(requests, key=lambda request: request.start_ms)
    present: list[Request] = []
    left = {id(request): request.prompt for request in requests}
    while coming or present:
        if not present:
            now_ms = max(now_ms, coming[0].start_ms)
        while coming and coming[0].start_ms <= now_ms:
            num_arrived += 1
            coming[0].arrival = num_arrived
            present.append(coming.pop(0))
        streams = [request for request in present if not left[id(request)]]
        prompts = [request for request in present if left[id(request)]]
        for stream in streams:
            stream.began = num_arrived if stream.began is None else stream.began
        newcomer = any(s.began is not None and s.began < prompts[0].arrival for s in streams) if prompts else False
        num_tokens = pacer.num_tokens(Load(len(streams), newcomer)) if pacer else MAX_TOKENS
        num_left = num_tokens - len(streams)
        for request in prompts:
            chunk = min(left[id(request)], num_left)
            left[id(request)] -= chunk
            num_left -= chunk
        num_prefilled = num_tokens - len(streams) - num_left
        step_ms = machine.step_ms(len(streams) + num_prefilled) * math.exp(generator.gauss(0, noise))
        now_ms += step_ms
        if pacer:
            pacer.observe(len(streams), num_prefilled, step_ms)
        for request in [request for request in present if not left[id(request)]]:
            request.times_ms.append(now_ms)
            if len(request.times_ms) == request.answer:
                present.remove(request)
    return Outcome(list(requests), now_ms)


def learned(machine: Machine, num_decoding: int, num_steps: int = 20) -> Pacer:
    """A pacer that saw that many streams alone, then beside prompts."""
    pacer = Pacer(MAX_TOKENS)
    for _ in range(num_steps):
        pacer.observe(num_decoding, 0, machine.step_ms(num_decoding))
    for _ in range(num_steps):
        num_tokens = pacer.num_tokens(Load(num_decoding, by_newcomer=True))
        pacer.observe(num_decoding, num_tokens - num_decoding, machine.step_ms(num_tokens))
    pacer.observe(num_decoding, 0, machine.step_ms(num_decoding))
    return pacer


OBSERVED = st.tuples(st.integers(0, 80), st.integers(0, 600), st.floats(1e-6, 100))
LOADS = st.builds(Load, st.integers(0, 80), st.booleans(), st.integers(0, 600))


@given(observed=st.lists(OBSERVED, max_size=30), load=LOADS, max_tokens=st.integers(1, 600))
def test_a_prompt_goes_on_in_every_step_and_no_step_exceeds_its_limit(
    observed: list[tuple[int, int, float]], load: Load, max_tokens: int
) -> None:
    pacer = Pacer(max_tokens)
    for step in observed:
        pacer.observe(*step)
    num_tokens = pacer.num_tokens(load)
    assert min(load.num_decoding + 1, max_tokens) <= num_tokens <= max_tokens
    assert load.num_decoding or num_tokens == max_tokens
    pacer.observe(1, 1, 1.0)
    assert pacer.num_tokens(load) >= min(load.num_decoding + 8, max_tokens)
    elders = pacer.num_tokens(load._replace(by_newcomer=False))
    assert num_tokens <= elders


@given(machine=MACHINES, num_decoding=st.integers(1, 64))
def test_a_newcomers_prompt_slows_streams_down_by_less_than_half(machine: Machine, num_decoding: int) -> None:
    num_tokens = learned(machine, num_decoding).num_tokens(Load(num_decoding, by_newcomer=True))
    if num_tokens > num_decoding + 8:
        assert machine.step_ms(num_tokens) <= 2.0 * machine.step_ms(num_decoding)
    elif num_tokens < MAX_TOKENS:  # that floor is all that fits
        assert machine.step_ms(num_tokens + 8) > 1.5 * machine.step_ms(num_decoding)


@given(machine=MACHINES, num_decoding=st.integers(1, 64))
def test_what_streams_can_bear_is_used(machine: Machine, num_decoding: int) -> None:
    num_tokens = learned(machine, num_decoding, num_steps=60).num_tokens(Load(num_decoding, by_newcomer=True))
    assert num_tokens == MAX_TOKENS or machine.step_ms(num_tokens + 1) >= 1.24 * machine.step_ms(num_decoding)


@given(
    machine=MACHINES,
    num_decoding=st.integers(1, 32),
    slowness=st.floats(1, 1000),
    num_prefilled=st.sampled_from([0, 50]),
)
def test_one_slow_step_changes_nothing(
    machine: Machine, num_decoding: int, slowness: float, num_prefilled: int
) -> None:
    pacer, same = learned(machine, num_decoding), learned(machine, num_decoding)
    load = Load(num_decoding, by_newcomer=True)
    num_tokens = pacer.num_tokens(load)
    num_prefilled = num_prefilled and num_tokens - num_decoding
    step_ms = machine.step_ms(num_decoding + num_prefilled)
    pacer.observe(num_decoding, num_prefilled, step_ms * slowness)
    same.observe(num_decoding, num_prefilled, step_ms)
    assert abs(pacer.num_tokens(load) - same.num_tokens(load)) <= 1 + 0.1 * num_tokens


@given(machine=MACHINES, slowness=st.floats(0.2, 10), num_decoding=st.integers(1, 32))
def test_a_machine_of_another_speed_is_known_after_a_while_of_nothing_but_prompts(
    machine: Machine, slowness: float, num_decoding: int
) -> None:
    pacer = learned(machine, num_decoding, num_steps=60)
    load = Load(num_decoding, by_newcomer=True)
    before = pacer.num_tokens(load)
    for _ in range(160):
        num_tokens = pacer.num_tokens(load)
        pacer.observe(num_decoding, num_tokens - num_decoding, slowness * machine.step_ms(num_tokens))
    pacer.observe(num_decoding, 0, slowness * machine.step_ms(num_decoding))
    assert abs(pacer.num_tokens(load) - before) <= 9 + 0.1 * before  # a step of 9 and one of 17 may follow each other


def test_one_step_in_seventeen_is_left_to_the_streams_while_a_newcomer_is_computed() -> None:
    pacer = learned(BF16, 4)
    load = Load(4, by_newcomer=True)
    sizes = []
    for _ in range(51):
        sizes.append(pacer.num_tokens(load))
        pacer.observe(4, sizes[-1] - 4, BF16.step_ms(sizes[-1]))
    assert [index for index, size in enumerate(sizes) if size == 5] == [16, 33, 50]


def test_streams_are_spared_before_anything_is_known() -> None:
    assert Pacer(MAX_TOKENS).num_tokens(Load(5, by_newcomer=False)) == 13


def test_a_first_step_that_took_long_is_not_taken_for_the_quiet_duration() -> None:
    pacer = Pacer(MAX_TOKENS)
    pacer.observe(1, 0, 10_000.0)  # the weights come into memory
    pacer.observe(0, 512, BF16.step_ms(512))
    assert pacer.num_tokens(Load(1, by_newcomer=True)) < 32


def test_no_step_is_left_to_the_streams_while_an_elder_is_computed() -> None:
    pacer = learned(BF16, 4)
    for _ in range(40):
        pacer.observe(4, 60, BF16.step_ms(64))
    assert pacer.num_tokens(Load(4, by_newcomer=False)) > 64


@pytest.mark.parametrize(("number", "expected_ms"), [(4, 100.0), (5, 100.0), (40, 200.0), (63, 200.0), (64, 200.0)])
def test_streams_of_a_number_not_seen_yet_take_no_less_than_fewer_and_no_more_than_more(
    number: int, expected_ms: float
) -> None:
    pacer = Pacer(MAX_TOKENS)
    # A token at 1 ms says 17 ms for 5 streams; at 5 ms it says 260 ms for 40.
    price_ms = 1.0 if number < 16 else 5.0
    for _ in range(8):
        pacer.observe(4, 0, 100.0)
        pacer.observe(64, 0, 200.0)
        pacer.observe(4, 20, 36 * price_ms)
    pacer.observe(4, 0, 100.0)
    allowed = int(1.6 * expected_ms / price_ms) - 12
    assert pacer.num_tokens(Load(number, by_newcomer=True)) == max(number + 8, allowed)


def burst(num_streams: int, num_prompts: int = 4) -> list[Request]:
    """Streams, and prompts of 1500 tokens long after them."""
    streams = [Request(0, 100, 1500) for _ in range(num_streams)]
    return [*streams, *(Request(4000, 1500, 2) for _ in range(num_prompts))]


@pytest.mark.parametrize("noise", [0.0, 0.08])
@pytest.mark.parametrize("num_streams", [1, 4, 8])
@pytest.mark.parametrize("machine", [BF16, INT8, INT4])
def test_a_burst_of_long_prompts_does_not_stall_streams(machine: Machine, num_streams: int, noise: float) -> None:
    paced = simulate(machine, burst(num_streams), Pacer(MAX_TOKENS), noise)
    unpaced = simulate(machine, burst(num_streams), noise=noise)
    quiet_ms = paced.p99_itl_ms(2000, 4000)
    assert paced.p99_itl_ms(4000, paced.drained_ms) <= 2.0 * quiet_ms
    assert unpaced.p99_itl_ms(4000, unpaced.drained_ms) > 10 * quiet_ms
    assert paced.end_ms <= 1.05 * unpaced.end_ms


@pytest.mark.parametrize("machine", [BF16, INT8, INT4])
@pytest.mark.parametrize("num_streams", [1, 2])
def test_beside_few_streams_a_burst_is_drained_about_as_fast(machine: Machine, num_streams: int) -> None:
    paced, unpaced = (simulate(machine, burst(num_streams), pacer) for pacer in (Pacer(MAX_TOKENS), None))
    assert paced.drained_ms - 4000 <= 1.45 * (unpaced.drained_ms - 4000)


@pytest.mark.parametrize("machine", [BF16, INT8, INT4])
def test_many_that_arrive_at_once_keep_the_throughput(machine: Machine) -> None:
    generator = random.Random(3)
    lengths = [generator.randint(128, 256) for _ in range(32)]
    paced, unpaced = (
        simulate(machine, [Request(0, length, 64) for length in lengths], pacer) for pacer in (Pacer(MAX_TOKENS), None)
    )
    assert paced.tokens_per_s >= 0.97 * unpaced.tokens_per_s
    assert paced.median_ttft_ms <= 1.06 * unpaced.median_ttft_ms
    assert paced.p99_itl_ms() <= 0.6 * unpaced.p99_itl_ms()


@pytest.mark.parametrize("machine", [BF16, INT8, INT4])
def test_a_short_prompt_of_a_tenant_that_has_nothing_else_here_takes_one_step(machine: Machine) -> None:
    pacer = learned(machine, 28)
    assert pacer.num_tokens(Load(28, by_newcomer=True)) < 28 + 50
    assert pacer.num_tokens(Load(28, by_newcomer=True, num_first=50)) >= 28 + 50
    assert pacer.num_tokens(Load(28, by_newcomer=True, num_first=5000)) <= 28 + 64
