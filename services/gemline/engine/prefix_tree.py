"""What the prefix cache is made of: nodes, the trails that sequences leave among them, and what was found and used.

Plain data; `prefix_cache` moves it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from gemline.engine.block_hash import Roots
from gemline.engine.blocks import BlockCounts
from gemline.engine.retention import ResumePoint


@dataclass(slots=True, eq=False)
class Node:
    """A cached block. It is there as long as its global block is; `local_id` is None when that part is gone."""

    block_hash: bytes
    parent: "Node | None"
    global_id: int
    local_id: int | None
    last_used: int
    depth: int  # 1 for the first block of a chain
    root: bytes  # of its tree: its tenant's, or that of public prefixes
    children: "dict[Node, None]" = field(default_factory=dict)
    num_tails: int = 0  # of points, that it is in
    point: "ResumePoint[Node] | None" = None
    is_end: bool = False  # a prompt or a turn ended here, and nobody has gone on yet
    num_in_row: int = 0  # as `residency` counts
    is_told: bool = False  # to routers


@dataclass(slots=True, eq=False)
class Trail:
    """One sequence in the cache: the nodes whose blocks it holds in the global pool, and how it came by them."""

    roots: Roots
    hashes: list[bytes] = field(default_factory=list)
    depth: int = 0  # nodes, all of them the first blocks of its table
    node: Node | None = None  # the deepest
    num_hit: int = 0  # of them were there when it was admitted
    interval: int | None = None  # how long its session was away
    branch_depth: int = 0  # where it leaves an earlier path: a point is wanted there
    branch_interval: int = 0
    resumed: ResumePoint[Node] | None = None  # the point that its session went on from
    prompt_end: ResumePoint[Node] | None = None
    was_admitted: bool = False
    whole_local_from: int = 0  # local blocks before this one, if held, lack positions: an import began within


class Known(NamedTuple):
    """How far a request's way was gone before."""

    depth: int
    last_used: int
    is_end: bool  # a prompt or a turn ended there
    is_crossing: bool  # others went on from there another way, and no point marks it


class Match(NamedTuple):
    """What a sequence would find if it were admitted now."""

    path: list[Node]  # all nodes that it shares, the first block's first
    num_blocks: int  # that it could use
    num_local: int  # of them with their local blocks, the last ones
    num_idle: BlockCounts  # of those it could use, held by nobody

    @classmethod
    def none(cls) -> "Match":
        """Nothing."""
        return cls([], 0, 0, BlockCounts(0, 0))


class CacheUse(NamedTuple):
    """What the cache was good for, summed up."""

    num_queried_tokens: int  # of the sequences that were admitted for the first time
    num_hit_tokens: int  # of those, that needed no computing
    num_evicted: BlockCounts

    @property
    def hit_ratio(self) -> float:
        """The second over the first; 0 while there is nothing to tell."""
        return self.num_hit_tokens / max(1, self.num_queried_tokens)
