"""Which cached prefix to give up first: the one expected back farthest from now. Knows no block and no hash tree.

Time is counted in requests that were looked up. A resume point is a place where a next request may go on: the end of a
turn, the end of a prompt, a prefix that several requests share. It is expected back as long after its last use as it
was away the time before. One that never came back yet is expected after the typical time, divided by the share of
turns that have a next one. Given up first is the point whose expected time is farthest from now, to come or past:

- Of those to come the last one wanted goes first, as in Belady's optimum. N sessions in turn over room for C of them,
  where LRU misses always, keep C - 1 hitting: whoever just had its turn is the farthest away and makes room. Where few
  requests ever come back, those that did are kept and the others pass through.
- One that is overdue is likelier forgotten the longer it is overdue, so sessions that ended make room. While nothing
  ever came back, everything is overdue from the start: the oldest goes first, which is LRU.

Two heaps, one from either end, with entries that outlive their points until they come up: O(log points) a change.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Generic, NamedTuple, TypeVar

NodeT = TypeVar("NodeT")

_STEP = 1.25  # by which the typical interval moves towards each new one: it follows the median
_FADE = 0.98  # of what is known of earlier turns, with each new one
_LEAST_SHARE = 0.01  # of turns that have a next one
_OVERDUE = 2  # a time past weighs so many times to come


class Memory(NamedTuple):
    """What is still known of a block that was evicted."""

    last_used: int
    is_end: bool  # a prompt or a turn ended there


class ResumePoint(Generic[NodeT]):
    """A place where a request may go on. `interval` is how long it was away the last time; None: it never came back."""

    __slots__ = ("due", "entry", "interval", "is_shared", "last_used", "node", "num_uses", "partner")

    def __init__(self, node: NodeT, last_used: int, interval: int | None, *, is_shared: bool) -> None:
        self.node = node
        self.last_used = last_used
        self.interval = interval
        self.is_shared = is_shared  # more than one request went on from here
        self.num_uses = 0
        self.due = 0
        self.entry = 0  # of the agenda; 0: in none
        self.partner: ResumePoint[NodeT] | None = None  # where the same turn's answer began

    @property
    def is_private(self) -> bool:
        """Whether no more than one request ever went on from here."""
        return self.num_uses <= 1 and not self.is_shared


class _Entry(NamedTuple, Generic[NodeT]):
    key: int
    entry: int
    point: ResumePoint[NodeT]


class Agenda(Generic[NodeT]):
    """The resume points that are kept, and what is remembered of blocks that were not."""

    def __init__(self, max_memories: int) -> None:
        self.now = 0
        self._typical = 0.0
        self._num_ended = self._num_returned = 1.0
        self._num_points = 0
        self._num_entries = 0
        self._earliest: list[_Entry[NodeT]] = []
        self._latest: list[_Entry[NodeT]] = []
        self._memories: OrderedDict[bytes, Memory] = OrderedDict()
        self._max_memories = max_memories

    def __len__(self) -> int:
        return self._num_points

    def learn(self, interval: int, *, is_next_turn: bool) -> None:
        """Something came back after so long."""
        self._num_returned += is_next_turn
        if not self._typical:
            self._typical = interval
        else:
            self._typical *= _STEP if interval > self._typical else 1 / _STEP

    def end_turn(self) -> None:
        """A turn ended, which may have a next one."""
        self._num_ended = self._num_ended * _FADE + 1
        self._num_returned *= _FADE

    def expect(self, point: ResumePoint[NodeT]) -> None:
        """The point was used just now: adds it, or changes when it is expected."""
        if not point.entry:
            self._num_points += 1
        self._num_entries += 1
        point.entry = self._num_entries
        point.last_used = self.now
        point.due = self.now + (self._first_interval() if point.interval is None else point.interval)
        heappush(self._earliest, _Entry(point.due, point.entry, point))
        heappush(self._latest, _Entry(-point.due, -point.entry, point))
        if len(self._latest) > 2 * self._num_points + 64:
            self._tidy()

    def discard(self, point: ResumePoint[NodeT]) -> None:
        """The point is kept no longer."""
        self._num_points -= 1
        point.entry = 0

    def farthest(self) -> ResumePoint[NodeT] | None:
        """The point to give up first; None when there is none."""
        early, late = _top(self._earliest), _top(self._latest)
        if early is None or late is None:
            return None
        return late if self.distance(late) >= self.distance(early) else early

    def distance(self, point: ResumePoint[NodeT]) -> int:
        """How far from now it is expected, to come or past."""
        return max(point.due - self.now, _OVERDUE * (self.now - point.due))

    def remember(self, block_hash: bytes, memory: Memory) -> None:
        """A block that is evicted; the oldest memories fade."""
        self._memories[block_hash] = memory
        if len(self._memories) > self._max_memories:
            self._memories.popitem(last=False)

    def recall(self, block_hash: bytes) -> Memory | None:
        """What is known of an evicted block."""
        return self._memories.get(block_hash)

    def forget(self, block_hash: bytes) -> None:
        """The block is cached again."""
        self._memories.pop(block_hash, None)

    def _first_interval(self) -> int:
        share = min(1.0, max(_LEAST_SHARE, self._num_returned / self._num_ended))
        return round(self._typical / share)

    def _tidy(self) -> None:
        self._earliest = [entry for entry in self._earliest if _is_current(entry)]
        self._latest = [entry for entry in self._latest if _is_current(entry)]
        heapify(self._earliest)
        heapify(self._latest)


def _is_current(entry: _Entry[NodeT]) -> bool:
    return entry.point.entry == abs(entry.entry)


def _top(heap: list[_Entry[NodeT]]) -> ResumePoint[NodeT] | None:
    while heap and not _is_current(heap[0]):
        heappop(heap)
    return heap[0].point if heap else None
