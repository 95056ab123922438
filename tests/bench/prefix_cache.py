"""Prefix cache: hit rate by pool size and workload, beside LRU of whole sessions and the clairvoyant optimum; its cost.

    python tests/bench/prefix_cache.py [hits] [cost]

Blocks, scheduler and cache are the engine's own; nothing is computed. Window 512 and block size 16 as in the bench
checkpoint. A pool of 1.0 holds every session at its longest in both pools. Rates are hit tokens over prompt tokens.
"""

import random
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

from gemline.engine.blocks import BlockCounts, num_blocks_for
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.engine.roster import Roster
from gemline.engine.scheduler import Budget, schedule

WINDOW, BLOCK_SIZE, MAX_BATCH_TOKENS = 512, 16, 512
ANSWER = 64
POOLS = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0)


class Turn(NamedTuple):
    """One request: whose, and its prompt."""

    session: int
    token_ids: tuple[int, ...]


class Engine:
    """The engine without its model: every chunk of a plan is computed at once, every answer is zeros."""

    def __init__(self, sizes: BlockCounts, max_running: int = 64) -> None:
        max_local = num_blocks_for(WINDOW - 1, BLOCK_SIZE) + num_blocks_for(MAX_BATCH_TOKENS + 15, BLOCK_SIZE)
        self.roster = Roster(sizes, BLOCK_SIZE, WINDOW, max_local, "bench")
        self.budget = Budget(MAX_BATCH_TOKENS, max_running)
        self.seq_ids = count(1)

    def add(self, token_ids: tuple[int, ...], max_tokens: int = ANSWER) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        self.roster.enqueue(EngineRequest(next(self.seq_ids), token_ids, len(token_ids), params, cache_salt=b"bench"))

    def step(self) -> None:
        plan = schedule(self.roster.state(self.budget), self.budget)
        self.roster.carry_out(plan)
        for chunk in plan.chunks:
            sequence = self.roster.by_id[chunk.seq_id]
            self.roster.computed(sequence, chunk.stop)
            if chunk.stop == sequence.num_tokens and sequence.append(0):
                self.roster.remove(chunk.seq_id)

    def drain(self) -> None:
        while self.roster.by_id:
            self.step()


def words(seed: int, length: int) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(1, 32000) for _ in range(length))


def conversation(session: int, num_turns: int, shared: tuple[int, ...] = (), user: int = 120) -> list[Turn]:
    """Each prompt is the one before, its answer, and the user's new words."""
    history, turns = shared, []
    for turn in range(num_turns):
        history += words(1000 * session + turn, user)
        turns.append(Turn(session, history))
        history += (0,) * ANSWER
    return turns


def round_robin(num_sessions: int = 10, num_turns: int = 8) -> list[Turn]:
    sessions = [conversation(number, num_turns) for number in range(num_sessions)]
    return [turns[turn] for turn in range(num_turns) for turns in sessions]


def returning() -> list[Turn]:
    """The same long prompts again and again, in turn."""
    prompts = [words(number, 1400) for number in range(10)]
    return [Turn(number, prompts[number]) for _ in range(8) for number in range(10)]


def shuffled() -> list[Turn]:
    """Every session's next turn, the sessions in random order."""
    sessions = [conversation(number, 8) for number in range(10)]
    order = [number for number in range(10) for _ in range(8)]
    random.Random(1).shuffle(order)
    left = [iter(turns) for turns in sessions]
    return [next(left[number]) for number in order]


def shared_prefixes() -> list[Turn]:
    """Ten prefixes of 1200 tokens in turn, each request with its own 100 after one of them."""
    prefixes = [words(number, 1200) for number in range(10)]
    return [Turn(n % 10, prefixes[n % 10] + words(10_000 + n, 100)) for n in range(100)]


def favourites() -> list[Turn]:
    """A hundred prefixes of 600 tokens, a few of them asked for far more often than the rest (Zipf)."""
    prefixes = [words(number, 600) for number in range(100)]
    source = random.Random(2)
    weights = [1 / (rank + 1) for rank in range(100)]
    numbers = source.choices(range(100), weights, k=600)
    return [Turn(number, prefixes[number] + words(10_000 + n, 60)) for n, number in enumerate(numbers)]


def flood() -> list[Turn]:
    """Six sessions in turn, and two single requests that never come back for every turn of theirs."""
    turns = [turn for number in range(10) for turn in [conversation(s, 10)[number] for s in range(6)]]
    numbers = count(100)
    return [t for turn in turns for t in (turn, *(Turn(n, words(n, 700)) for n in (next(numbers), next(numbers))))]


def shift() -> list[Turn]:
    """Eight sessions in turn, then eight others: those that ended must make room."""
    return [
        turns[turn]
        for part in range(4)
        for turn in range(6)
        for turns in [conversation(100 * part + number, 6) for number in range(8)]
    ]


def run(turns: Iterable[Turn], sizes: BlockCounts, at_once: int = 1) -> float:
    engine, pending = Engine(sizes), list(turns)
    for start in range(0, len(pending), at_once):
        for turn in pending[start : start + at_once]:
            engine.add(turn.token_ids)
        engine.drain()
    use = engine.roster.cache_use
    return use.num_hit_tokens / use.num_queried_tokens


def num_blocks(turn: Turn) -> int:
    return num_blocks_for(len(turn.token_ids) + ANSWER, BLOCK_SIZE)


def best_hits(turns: list[Turn], num_room: int, *, clairvoyant: bool) -> float:
    """Whole sessions: a turn hits what all its session's last turn left, if that was kept beside what has to run."""
    kept: OrderedDict[int, Turn] = OrderedDict()
    uses: dict[int, list[int]] = {}
    for index, turn in enumerate(turns):
        uses.setdefault(turn.session, []).append(index)
    num_hit = 0
    for index, turn in enumerate(turns):
        before = kept.pop(turn.session, None)
        if before is not None:
            num_hit += common(before.token_ids + (0,) * (ANSWER - 1), turn.token_ids)
        kept[turn.session] = turn
        while sum(map(num_blocks, kept.values())) > num_room and len(kept) > 1:
            others = [session for session in kept if session != turn.session]
            gone = max(others, key=lambda s: next_use(uses[s], index)) if clairvoyant else others[0]
            del kept[gone]
        if clairvoyant and next_use(uses[turn.session], index) == len(turns):
            del kept[turn.session]
    return num_hit / sum(len(turn.token_ids) for turn in turns)


def next_use(uses: list[int], index: int) -> float:
    return next((use for use in uses if use > index), 10**9)


def common(before: tuple[int, ...], now: tuple[int, ...]) -> int:
    length = next((n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    return min(length, len(now) - 1) // BLOCK_SIZE * BLOCK_SIZE


def workloads() -> Iterator[tuple[str, list[Turn]]]:
    yield from (
        (make.__name__, make())
        for make in (round_robin, returning, shuffled, shared_prefixes, favourites, flood, shift)
    )


def hits() -> None:
    print(f"{'workload':16} {'':12}", *(f"{share:6.0%}" for share in POOLS))
    for name, turns in workloads():
        longest = {turn.session: num_blocks(turn) for turn in turns}
        whole = sum(longest.values()) if name not in ("flood", "shift") else sum(sorted(longest.values())[-8:])
        rooms = [max(2048 // BLOCK_SIZE, round(share * whole)) for share in POOLS]
        rows = {
            "gemline": [run(turns, BlockCounts(room, room)) for room in rooms],
            "4 at once": [run(turns, BlockCounts(room, room), at_once=4) for room in rooms],
            "LRU": [best_hits(turns, room, clairvoyant=False) for room in rooms],
            "clairvoyant": [best_hits(turns, room, clairvoyant=True) for room in rooms],
        }
        for kind, rates in rows.items():
            print(f"{name:16} {kind:12}", *(f"{rate:6.1%}" for rate in rates))


def cost() -> None:
    """Of one step that decodes 32 sequences, and of a prompt of 1500 tokens: found, and not found."""
    for num_sequences, length in ((32, 200), (32, 1500), (64, 1500)):
        engine = Engine(BlockCounts(12000, 6000), max_running=64)
        for number in range(num_sequences):
            engine.add(words(number, length), max_tokens=400)
        while any(sequence.num_computed < sequence.num_given for sequence in engine.roster.by_id.values()):
            engine.step()
        times = []
        for _ in range(300):
            start_s = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start_s)
        mean_us, median_us = 1e6 * sum(times) / len(times), 1e6 * sorted(times)[len(times) // 2]
        print(f"step of {num_sequences} decoding at {length}: mean {mean_us:.0f} us, median {median_us:.0f} us")
    for name, rounds in (("not found", [words(n, 1500) for n in range(50)]), ("found", [words(1, 1500)] * 50)):
        engine = Engine(BlockCounts(1000, 1000))
        start_s = time.perf_counter()
        for token_ids in rounds:
            engine.add(token_ids, max_tokens=1)
            engine.drain()
        print(f"a prompt of 1500 tokens, {name}: {1e6 * (time.perf_counter() - start_s) / 50:.0f} us in all its steps")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["hits", "cost"]
    if "hits" in chosen:
        hits()
    if "cost" in chosen:
        cost()
