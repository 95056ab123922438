"""Hours of load in milliseconds: the real policy over simulated workers, on traces that are the same every time.

Simulated, second by second: prompts queue for prefill workers that compute `SPEED` tokens a second each; then they
stream from decode workers, where a step takes `ALONE_S` and `each_s` more for each stream; a new worker takes `START_S`
to start. Workers tell what ours tell (`gemline.signals`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from gemline.serve.autoscaling import Memory, Scaling, decide
from gemline.signals import Recent, Signals

SPEED = 8000.0
ALONE_S = 0.010
PLACES = 64
TOKEN_BYTES, KV_BYTES = 1, 120_000
START_S = 20
PREFILL = Scaling("prefill", 1, 16, ttft_slo_s=2.0, itl_slo_s=0.1)
DECODE = Scaling("decode", 1, 16, ttft_slo_s=2.0, itl_slo_s=0.1)


@dataclass
class Request:
    came_s: int
    num_prompt: int
    num_answer: int
    left: float = 0.0


@dataclass
class Fleet:
    """The workers of one role: those that serve, and when others will."""

    scaling: Scaling
    num_target: int = 1
    starting_s: deque[int] = field(default_factory=deque)
    memory: Memory = field(default_factory=Memory)
    history: list[int] = field(default_factory=list)

    @property
    def num(self) -> int:
        return self.num_target - len(self.starting_s)

    def turn(self, now_s: int, signals: Signals) -> None:
        """All workers say the same: gateways spread requests evenly."""
        while self.starting_s and self.starting_s[0] <= now_s:
            self.starting_s.popleft()
        num, self.memory = decide([signals] * self.num, self.num_target, self.scaling, self.memory, float(now_s))
        for _ in range(num - self.num_target):
            self.starting_s.append(now_s + START_S)
        while self.num_target > num:
            self.num_target -= 1
            if self.starting_s:
                self.starting_s.pop()
        self.num_target = num
        self.history.append(num)


@dataclass
class Platform:
    each_s: float = 0.0015  # with all the places that the policy fills (48 of 64) a step takes 0.082 s
    prefill: Fleet = field(default_factory=lambda: Fleet(PREFILL))
    decode: Fleet = field(default_factory=lambda: Fleet(DECODE))
    ttfts_s: list[float] = field(default_factory=list)
    itls_s: list[float] = field(default_factory=list)

    def run(self, trace: Iterator[list[Request]]) -> None:
        queue: deque[Request] = deque()
        streams: list[Request] = []
        ttft, itl = Recent(), Recent()
        for now_s, arrived in enumerate(trace):
            for request in arrived:
                request.left = request.num_prompt
            queue.extend(arrived)
            room = capacity = self.prefill.num * SPEED
            while queue and room > 0:
                done = min(queue[0].left, room)
                room, queue[0].left = room - done, queue[0].left - done
                if queue[0].left == 0:
                    request = queue.popleft()
                    ttft.add(now_s - request.came_s + (capacity - room) / capacity, now_s)
                    self.ttfts_s.append(now_s - request.came_s + (capacity - room) / capacity)
                    request.left = request.num_answer
                    streams.append(request)
            running = streams[: PLACES * self.decode.num]
            itl_s = ALONE_S + self.each_s * len(running) / self.decode.num if running else 0.0
            for stream in running:
                stream.left -= 1 / itl_s
            itl.add(itl_s, now_s)
            self.itls_s += [itl_s] * len(running)
            streams = [stream for stream in streams if stream.left > 0]
            held = sum(it.num_prompt + it.num_answer - max(0, it.left) for it in streams) * TOKEN_BYTES
            queued = int(sum(request.left for request in queue))
            self.prefill.turn(
                now_s,
                Signals(
                    queued_tokens=queued // self.prefill.num,
                    tokens_per_s=SPEED,
                    busy_share=1 - room / capacity,
                    ttft_s=ttft.high(now_s),
                ),
            )
            self.decode.turn(
                now_s,
                Signals(
                    num_running=len(running) // self.decode.num,
                    num_waiting=(len(streams) - len(running)) // self.decode.num,
                    max_running=PLACES,
                    kv_bytes=KV_BYTES,
                    free_kv_bytes=max(0, KV_BYTES - int(held / self.decode.num)),
                    itl_s=itl.high(now_s),
                ),
            )


def trace(num_s: int, rate: Callable[[int], float], prompt: int, answer: int, seed: int = 1) -> Iterator[list[Request]]:
    """Requests a second by a Poisson process, lengths between half and one and a half of what is said."""
    random = Random(seed)
    for second in range(num_s):
        arrived, at = [], random.expovariate(max(rate(second), 1e-9))
        while at < 1:
            lengths = (random.randint(length // 2, length * 3 // 2) for length in (prompt, answer))
            arrived.append(Request(second, *lengths))
            at += random.expovariate(max(rate(second), 1e-9))
        yield arrived


def turns(history: list[int]) -> int:
    """How often a number that rose begins to fall, or the other way round."""
    steps = [after - before for before, after in pairwise(history) if after != before]
    return sum((one > 0) != (two > 0) for one, two in pairwise(steps))


def late_share(values: list[float], bound: float) -> float:
    return sum(value > bound for value in values) / len(values)


def day(second: int) -> float:
    """From 1 to 9 requests a second and back, once in an hour."""
    return 1 + 8 * max(0.0, 1 - abs(second - 1800) / 1500)


def test_over_a_day_both_bounds_are_held_and_each_role_grows_once_and_shrinks_once() -> None:
    platform = Platform()
    platform.run(trace(3600, day, prompt=2000, answer=200))
    print(f"TTFT late {late_share(platform.ttfts_s, 2.0):.4f}, ITL late {late_share(platform.itls_s, 0.1):.4f}")
    print(f"prefill {platform.prefill.history[::120]}, decode {platform.decode.history[::120]}")
    assert late_share(platform.ttfts_s, PREFILL.ttft_slo_s) < 0.05
    assert late_share(platform.itls_s, DECODE.itl_slo_s) < 0.05
    for fleet in (platform.prefill, platform.decode):
        assert max(fleet.history) >= 3
        assert fleet.history[-1] <= 2
        assert turns(fleet.history) <= 3


def test_a_steady_load_is_answered_by_a_steady_number() -> None:
    platform = Platform()
    platform.run(trace(1800, lambda second: 6.0, prompt=2000, answer=200))
    for fleet in (platform.prefill, platform.decode):
        print(fleet.scaling.role, fleet.history[::60])
        assert turns(fleet.history[600:]) == 0
        assert max(fleet.history[600:]) - min(fleet.history[600:]) <= 1


def test_workers_that_are_slower_than_their_places_promise_are_found_out() -> None:
    platform = Platform(each_s=0.003)  # 48 streams would take 0.154 s a step
    platform.run(trace(1800, lambda second: 5.0, prompt=500, answer=200))
    print(platform.decode.history[::60], platform.decode.memory)
    assert late_share(platform.itls_s[len(platform.itls_s) // 2 :], DECODE.itl_slo_s) < 0.05
    assert platform.decode.memory.learned is not None
    assert turns(platform.decode.history[900:]) == 0


def test_a_burst_is_outgrown_and_forgotten() -> None:
    platform = Platform()
    platform.run(trace(900, lambda second: 12.0 if 300 <= second < 400 else 1.0, prompt=2000, answer=200))
    assert max(platform.prefill.history) >= 4
    assert platform.prefill.history[-1] <= 2
    assert turns(platform.prefill.history) <= 1


def test_the_ratio_follows_the_load() -> None:
    reading, writing = Platform(), Platform()
    reading.run(trace(900, lambda second: 6.0, prompt=4000, answer=40))
    writing.run(trace(900, lambda second: 6.0, prompt=200, answer=600))
    print(f"reading {reading.prefill.num}:{reading.decode.num}, writing {writing.prefill.num}:{writing.decode.num}")
    assert reading.prefill.num > 2 * reading.decode.num
    assert writing.decode.num > 2 * writing.prefill.num
    for platform in (reading, writing):
        assert late_share(platform.ttfts_s[len(platform.ttfts_s) // 2 :], PREFILL.ttft_slo_s) < 0.05
        assert late_share(platform.itls_s[len(platform.itls_s) // 2 :], DECODE.itl_slo_s) < 0.05


def test_beyond_the_allowed_number_it_stays_there() -> None:
    platform = Platform()
    platform.run(trace(300, lambda second: 100.0, prompt=4000, answer=20))
    assert max(platform.prefill.history) == PREFILL.max_replicas
    assert turns(platform.prefill.history) == 0
