"""A day of a large cluster in minutes: the gateway's own routing over simulated workers, sessions and tenants.

    python tests/bench/routing_sim.py [--workers 500] [--sessions 100000] [--tenants 10000] [--seconds 120]

What is real: `gemline.gateway.routing.choose`, `ResidencyIndex`, block hashes and their names, how often workers tell
of changes. What is simulated, by discrete events: workers (a queue that prefills, streams that slow each other down, a
cache of limited size whose least recently used chain goes first), people (sessions that think, ask and are answered;
a tenth of the tenants begin all sessions with a long instruction of their own), and the delay of what workers tell.

Times are of the thread's own clock: what others do on this machine does not count. The oracle chooses with the same
function, from what is true at that moment. At two thirds of the time a tenth of the workers die at once, with all they
held.
"""

import argparse
import gc
import heapq
import json
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from statistics import mean, median, quantiles
from typing import Any

from gemline.engine.block_hash import Roots, extend_hashes
from gemline.engine.blocks import BlockCounts
from gemline.engine.residency import STRIDE
from gemline.gateway.residency import NAME_BYTES, ResidencyIndex, prefix_names
from gemline.gateway.routing import Candidate, Life, Wish, choose

BLOCK, WINDOW, CONTEXT = 64, 4096, 8192
CACHE_BLOCKS = 2800  # of each pool: 9B with bf16 KV on what 80 GB leave
PREFILL_TOKENS_PER_S = 25_000.0  # 9B on an H100 at about 60% of its matrix rate
FIRST_STREAM_S, MORE_STREAM_S = 0.009, 0.00012  # a step's time: alone, and for each stream more
TOLD_AFTER_S = 0.05
REVISION = "simulated"


@dataclass(slots=True)
class Session:
    """A conversation. Its tokens are its number and their positions: equal prefixes only where they are meant."""

    number: int
    tenant: int
    tokens: list[int]
    hashes: list[bytes] = field(default_factory=list)
    owner: Life | None = None

    @property
    def salt(self) -> bytes:
        return self.tenant.to_bytes(8, "little")

    def say(self, num_tokens: int) -> None:
        start = len(self.tokens)
        self.tokens += [(self.number * 7919 + position) % 250_000 for position in range(start, start + num_tokens)]

    def extended(self) -> list[bytes]:
        """Hashes of all its full blocks."""
        extend_hashes(self.hashes, Roots.of(REVISION, self.salt), self.tokens, BLOCK, len(self.tokens) // BLOCK)
        return self.hashes


class Worker:
    """A cache of whole chains, a queue of prompts, and streams."""

    def __init__(self, number: int) -> None:
        self.life = Life(f"decode-{number:04}", 1)
        self.chains: OrderedDict[int, list[bytes]] = OrderedDict()  # by session: names that it tells of
        self.sizes: dict[int, int] = {}
        self.num_cached = 0
        self.busy_until_s = 0.0
        self.num_streams = 0
        self.num_requests = 0

    def keep(self, session: Session) -> tuple[list[bytes], list[bytes]]:
        """What it tells after a turn has ended: names added and removed."""
        hashes = session.extended()
        told = [h[:NAME_BYTES] for depth, h in enumerate(hashes, start=1) if depth % STRIDE == 0]
        if hashes:
            told.append(hashes[-1][:NAME_BYTES])
        removed = self.chains.pop(session.number, [])
        self.num_cached -= self.sizes.pop(session.number, 0)
        self.chains[session.number], self.sizes[session.number] = told, len(hashes)
        self.num_cached += len(hashes)
        while self.num_cached > CACHE_BLOCKS:
            number, names = self.chains.popitem(last=False)
            self.num_cached -= self.sizes.pop(number)
            removed += names
        kept = set(told)
        return told, [name for name in removed if name not in kept]


class People:
    """Who asks what, when."""

    def __init__(self, num_sessions: int, num_tenants: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.num_tenants = num_tenants
        self.numbers = count()
        self.live = [self.begin() for _ in range(num_sessions)]

    def begin(self) -> Session:
        tenant = min(int(self.random.paretovariate(0.9)) - 1, self.num_tenants - 1)  # few tenants have most sessions
        shared = [(tenant * 31 + position) % 250_000 for position in range(1024)] if tenant % 10 == 0 else []
        return Session(next(self.numbers), tenant, shared)

    def question(self) -> int:
        return min(1500, max(8, int(self.random.lognormvariate(4.3, 1.0))))

    def answer(self) -> int:
        return min(800, max(8, int(self.random.lognormvariate(5.0, 0.7))))

    def pause_s(self) -> float:
        return self.random.expovariate(1 / 45)


@dataclass(slots=True)
class Tally:
    """What came of the requests of one phase."""

    num_requests: int = 0
    num_tokens: int = 0
    num_hit: int = 0
    num_predicted: int = 0
    num_oracle: int = 0
    num_best: int = 0  # tokens that any living worker held
    waits_s: list[float] = field(default_factory=list)
    decisions_s: list[float] = field(default_factory=list)
    hashings_s: list[float] = field(default_factory=list)

    def report(self) -> dict[str, float]:
        if not self.num_requests:
            return {}
        waits, decisions = sorted(self.waits_s), quantiles(self.decisions_s, n=100)
        return {
            "requests": self.num_requests,
            "hit_rate": round(self.num_hit / self.num_tokens, 4),
            "oracle_hit_rate": round(self.num_oracle / self.num_tokens, 4),
            "best_possible_hit_rate": round(self.num_best / self.num_tokens, 4),
            "predicted_over_actual": round(self.num_predicted / max(1, self.num_hit), 4),
            "ttft_p50_ms": round(1e3 * median(waits), 1),
            "ttft_p99_ms": round(1e3 * waits[int(0.99 * len(waits))], 1),
            "decision_p50_us": round(1e6 * median(self.decisions_s), 1),
            "decision_p99_us": round(1e6 * decisions[98], 1),
            "hashing_p50_us": round(1e6 * median(self.hashings_s), 1),
        }


class Cluster:
    """Workers, what a gateway knows of them, and what is true."""

    def __init__(self, num_workers: int) -> None:
        self.workers = {worker.life: worker for worker in map(Worker, range(num_workers))}
        self.candidates = {
            life: Candidate(life, 0, BLOCK, BlockCounts(CACHE_BLOCKS, CACHE_BLOCKS)) for life in self.workers
        }
        self.told: ResidencyIndex[Candidate] = ResidencyIndex()
        self.true: ResidencyIndex[Candidate] = ResidencyIndex()
        self.listed = list(self.candidates.values())

    def die(self, lives: list[Life]) -> None:
        for life in lives:
            candidate = self.candidates.pop(life)
            del self.workers[life]
            self.told.leave(candidate)
            self.true.leave(candidate)
        self.listed = list(self.candidates.values())

    def keep(self, worker: Worker, session: Session) -> tuple[list[bytes], list[bytes]]:
        added, removed = worker.keep(session)
        self.true.update(self.candidates[worker.life], added, removed)
        return added, removed


class Simulation:
    """Events in the order of their time."""

    def __init__(self, cluster: Cluster, people: People) -> None:
        self.cluster, self.people = cluster, people
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = count()
        self.tally = Tally()
        self.loads: list[float] = []

    def at(self, time_s: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (time_s, next(self.order), kind, what))

    def run(self, until_s: float) -> None:
        while self.events and self.events[0][0] <= until_s:
            now_s, _, kind, what = heapq.heappop(self.events)
            getattr(self, kind)(now_s, *what)

    def ask(self, now_s: float, session: Session) -> None:
        session.say(self.people.question())
        num_answer = self.people.answer()
        if len(session.tokens) + num_answer > CONTEXT:
            return self.at(now_s, "ask", (self.people.begin(),))
        cluster, tally, begun_s = self.cluster, self.tally, time.thread_time()
        names = prefix_names(REVISION, session.salt, 0, session.tokens, BLOCK)
        hashed_s = time.thread_time()
        owner = None if session.owner is None else cluster.candidates.get(session.owner)
        wish = Wish(f"req_{next(self.order)}", len(session.tokens), WINDOW, owner)
        hits = {candidate: depth * BLOCK for candidate, depth in cluster.told.hits(names).items()}
        route = choose(cluster.listed, wish, hits)
        decided_s = time.thread_time()
        truth = {candidate: depth * BLOCK for candidate, depth in cluster.true.hits(names).items()}
        oracle = choose(cluster.listed, wish, truth)
        if route is None or oracle is None:
            raise RuntimeError("no worker is left")
        worker = cluster.workers[route.candidate.life]
        num_hit = truth.get(route.candidate, 0)
        tally.num_requests += 1
        tally.num_tokens += len(session.tokens)
        tally.num_hit += num_hit
        tally.num_predicted += route.num_hit_tokens
        tally.num_oracle += oracle.num_hit_tokens
        tally.num_best += max(truth.values(), default=0)
        tally.hashings_s.append(hashed_s - begun_s)
        tally.decisions_s.append(decided_s - hashed_s)
        self.serve(now_s, worker, session, len(session.tokens) - num_hit, num_answer)

    def serve(self, now_s: float, worker: Worker, session: Session, num_missing: int, num_answer: int) -> None:
        first_s = max(now_s, worker.busy_until_s) + num_missing / PREFILL_TOKENS_PER_S
        self.tally.waits_s.append(first_s - now_s)
        worker.busy_until_s = first_s
        worker.num_streams += 1
        worker.num_requests += 1
        self.cluster.candidates[worker.life].load += 1
        step_s = FIRST_STREAM_S + MORE_STREAM_S * worker.num_streams
        session.owner = worker.life
        self.at(first_s + num_answer * step_s, "answered", (worker, session, num_answer))

    def answered(self, now_s: float, worker: Worker, session: Session, num_answer: int) -> None:
        if worker.life not in self.cluster.workers:  # it died under the request, which goes on elsewhere from there
            session.owner = None
            return self.at(now_s, "again", (session, num_answer))
        worker.num_streams -= 1
        self.cluster.candidates[worker.life].load -= 1
        session.say(num_answer)
        added, removed = self.cluster.keep(worker, session)
        self.at(now_s + TOLD_AFTER_S, "told", (worker.life, added, removed))
        self.at(now_s + self.people.pause_s(), "ask", (session,))

    def again(self, now_s: float, session: Session, num_answer: int) -> None:
        wish = Wish(f"req_{next(self.order)}", len(session.tokens), WINDOW)
        route = choose(self.cluster.listed, wish, {})
        if route is not None:
            worker = self.cluster.workers[route.candidate.life]
            self.serve(now_s, worker, session, len(session.tokens), num_answer)

    def told(self, now_s: float, life: Life, added: list[bytes], removed: list[bytes]) -> None:
        if life in self.cluster.workers:
            self.cluster.told.update(self.cluster.candidates[life], added, removed)

    def watch(self, now_s: float) -> None:
        loads = [worker.num_streams for worker in self.cluster.workers.values()]
        self.loads.append(max(loads) / max(1e-9, mean(loads)))
        self.at(now_s + 1.0, "watch", ())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for line in simulate(asked.workers, asked.sessions, asked.tenants, asked.seconds, asked.seed):
        print(json.dumps(line), flush=True)


def simulate(
    num_workers: int, num_sessions: int, num_tenants: int, seconds: float, seed: int
) -> Iterator[dict[str, Any]]:
    people = People(num_sessions, num_tenants, seed)
    cluster = Cluster(num_workers)
    lives = list(cluster.workers)
    for session in people.live:  # each has had some turns, somewhere
        for _ in range(people.random.randint(1, 6)):
            session.say(people.question() + people.answer())
        del session.tokens[CONTEXT // 2 :]
        session.owner = people.random.choice(lives)
        added, removed = cluster.keep(cluster.workers[session.owner], session)
        cluster.told.update(cluster.candidates[session.owner], added, removed)
    gc.collect()
    gc.disable()  # what a collection takes here is for the simulated world, which no gateway holds
    yield {"phase": "view", "names": len(cluster.told), "bytes": view_bytes(cluster.told)}
    simulation = Simulation(cluster, people)
    for session in people.live:
        simulation.at(people.pause_s(), "ask", (session,))
    simulation.at(0.0, "watch", ())
    die_s = seconds * 2 / 3
    for phase, until_s in (("warm-up", seconds / 6), ("steady", die_s), ("after a tenth died", seconds)):
        simulation.tally, simulation.loads = Tally(), []
        if until_s == seconds:
            cluster.die(people.random.sample(lives, num_workers // 10))
        simulation.run(until_s)
        yield {"phase": phase, **simulation.tally.report(), "max_over_mean_load": round(mean(simulation.loads), 2)}


def view_bytes(index: ResidencyIndex[Candidate]) -> int:
    """Of its own containers and their contents, names counted once."""
    holders, names = index._holders, index._names
    size = sys.getsizeof(holders) + sum(map(sys.getsizeof, names.values()))
    return size + sum(sys.getsizeof(name) + sys.getsizeof(bits) for name, bits in holders.items())


if __name__ == "__main__":
    main()
