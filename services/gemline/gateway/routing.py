"""Which decode worker takes a request. A pure function over what is known of the workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from gemline.engine.blocks import BlockCounts, num_blocks_for

# What a sequence on a worker is counted as, in prompt tokens to be computed.
TOKENS_PER_SEQUENCE = 256
# The owner of a session is passed over when it has so many sequences more than the least loaded worker.
MOST_AHEAD = 16
UNLIMITED = BlockCounts(2**62, 2**62)


class Life(NamedTuple):
    """One life of a worker."""

    worker_id: str
    epoch: int


@dataclass(slots=True, eq=False)
class Candidate:
    """A worker that could take a request, and what is known of it; whoever knows more changes it in place."""

    life: Life
    load: int = 0  # sequences that are there by now
    block_size: int = 16
    free: BlockCounts = UNLIMITED  # blocks, those that only its prefix cache keeps among them, as it last said


class Wish(NamedTuple):
    """What a request needs."""

    spread_by: str  # what tells equals apart: requests of one such text go to one of them
    num_tokens: int  # of the prompt
    window: int  # positions that local layers keep
    owner: Candidate | None = None  # the worker that has its session


class Route(NamedTuple):
    """Where it goes, and how many tokens of its prompt are expected to be found there."""

    candidate: Candidate
    num_hit_tokens: int


def choose(candidates: Sequence[Candidate], wish: Wish, hit_tokens: Mapping[Candidate, int]) -> Route | None:
    """The session's owner, if it is there and not swamped; else the least work: tokens to compute, sequences before.

    Whoever lacks the blocks is out of the question unless everybody does. Equals are told apart by `spread_by`, so
    that several gateways spread alike; candidates are in one order everywhere. Owner and hits are of candidates alone.
    """
    if not candidates:
        return None
    least = min([candidate.load for candidate in candidates])
    idlest = [candidate for candidate in candidates if candidate.load == least]
    start = crc32(wish.spread_by.encode("utf-8", "replace")) % len(idlest)
    idle = next((c for c in (*idlest[start:], *idlest[:start]) if has_room(c, wish.num_tokens, wish.window)), None)
    if idle is None:
        with_room = [candidate for candidate in candidates if has_room(candidate, wish.num_tokens, wish.window)]
        if with_room:
            return choose(
                with_room, wish, {c: num for c, num in hit_tokens.items() if has_room(c, wish.num_tokens, wish.window)}
            )
        return Route(idlest[start], hit_tokens.get(idlest[start], 0))  # it will wait there
    owner = wish.owner
    if owner is not None and owner.load <= least + MOST_AHEAD and has_room(owner, wish.num_tokens, wish.window):
        return Route(owner, hit_tokens.get(owner, 0))
    best, least_work = idle, _work(idle, hit_tokens.get(idle, 0))
    for candidate, num_hit in hit_tokens.items():
        work = _work(candidate, num_hit)
        if work < least_work and has_room(candidate, wish.num_tokens, wish.window):
            best, least_work = candidate, work
    return Route(best, hit_tokens.get(best, 0))


def _work(candidate: Candidate, num_hit: int) -> tuple[int, int]:
    """Beyond what every worker has to do; among equals the longer hit, as that leaves more of the machine to others."""
    return TOKENS_PER_SEQUENCE * candidate.load - num_hit, -num_hit


def has_room(candidate: Candidate, num_tokens: int, window: int) -> bool:
    """For all blocks of a prompt: those that it would find there are counted as free, too."""
    num_blocks = num_blocks_for(num_tokens + 1, candidate.block_size)
    num_local = min(num_blocks, num_blocks_for(window, candidate.block_size) + 1)
    return num_blocks <= candidate.free.num_global and num_local <= candidate.free.num_local
