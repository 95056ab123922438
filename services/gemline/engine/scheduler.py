"""What the next step computes: a pure function from the state and a budget to a plan. Knows no torch; moves nothing.

Order of claims: those that run, the oldest first, then the queue. A prefill leaves a token of the step for each newer
sequence that decodes. Whoever cannot get a block sends newer sequences back to the queue, never older ones, so the
oldest goes on in every step that has a token for it, and every sequence ends.
"""

from dataclasses import dataclass
from typing import NamedTuple

from gemline.engine.blocks import BlockCounts, num_blocks_for


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may hold."""

    max_batch_tokens: int
    max_running: int


class SequenceView(NamedTuple):
    """What the scheduler needs to know of a sequence. One that waits is seen with what it would find in the cache."""

    seq_id: int
    num_tokens: int  # to be computed before it can be given its next token
    num_computed: int
    num_blocks: int  # of the global pool that it has; both its tables reach as far
    num_alone: BlockCounts  # that no other sequence has: free when it is sent back, or until it is admitted

    @property
    def decodes(self) -> bool:
        """Whether one token is all it lacks; otherwise it prefills."""
        return self.num_tokens - self.num_computed == 1


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """Who is there, the oldest first, and what is free: what the prefix cache would give up is."""

    running: tuple[SequenceView, ...]
    waiting: tuple[SequenceView, ...]  # the front of the queue
    num_waiting: int
    num_reserved: int  # sequences that own blocks but are not in the batch: held for, or arriving from, others
    free: BlockCounts
    block_size: int
    max_local_blocks: int  # that one sequence ever has at a time, its window and a whole step's tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """The positions [start, stop) of one sequence."""

    seq_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Plan:
    """To be done in this order: free what the preempted have, admit, give blocks to the chunks, compute them."""

    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


def schedule(state: SchedulerState, budget: Budget) -> Plan:
    """The plan of one step: within the budget, and of no more blocks than are free."""
    draft = _Draft(state, budget.max_batch_tokens)
    draft.go_on()
    admitted = [] if draft.preempted else draft.admit(budget.max_running)
    return Plan(tuple(draft.preempted), tuple(admitted), tuple(draft.chunks.values()))


def has_room(state: SchedulerState, budget: Budget, newcomer: SequenceView) -> bool:
    """Whether a sequence could be admitted now, behind all that wait."""
    if state.num_waiting or len(state.running) + state.num_reserved >= budget.max_running:
        return False
    need, spare = _need(state, newcomer), _spare(state, state.free, state.running)
    return need.num_global <= spare.num_global and need.num_local <= spare.num_local


class _Draft:
    """A plan in the making."""

    def __init__(self, state: SchedulerState, num_tokens: int) -> None:
        self._state = state
        self._tokens_left = num_tokens
        self._free = state.free
        self._running = list(state.running)
        self.chunks: dict[int, Chunk] = {}
        self.preempted: list[int] = []

    def go_on(self) -> None:
        """Gives each that runs as many tokens as it can use, the oldest first."""
        num_decoding = sum(view.decodes for view in self._running)  # whose turn is still to come
        for view in self._running:  # which loses those that are sent back, at its end
            num_decoding -= view.decodes
            self._go_on(view, self._tokens_left if view.decodes else self._tokens_left - num_decoding)

    def _go_on(self, view: SequenceView, num_tokens: int) -> None:
        if num_tokens < 1:
            return
        while (stop := self._reach(view, num_tokens)) == view.num_computed:
            if not self._preempt_newest(view):
                return  # it keeps its blocks and waits for someone to end
        self._take(view, stop)

    def admit(self, max_running: int) -> list[int]:
        """Takes from the front of the queue whoever fits whole, so that nobody is admitted to be sent back."""
        num_free_places = max_running - len(self._running) - self._state.num_reserved
        if num_free_places <= 0 or not self._state.waiting:
            return []
        spare = _spare(self._state, self._free, tuple(self._after(view) for view in self._running))
        admitted: list[int] = []
        for view in self._state.waiting[:num_free_places]:
            need = _need(self._state, view)
            spare = BlockCounts(spare.num_global - need.num_global, spare.num_local - need.num_local)
            if self._tokens_left < 1 or min(spare) < 0:
                break
            self._free = BlockCounts(
                self._free.num_global - view.num_alone.num_global, self._free.num_local - view.num_alone.num_local
            )
            self._take(view, self._reach(view, self._tokens_left))
            admitted.append(view.seq_id)
        return admitted

    def _reach(self, view: SequenceView, num_tokens: int) -> int:
        """Up to which position it could be computed: so many tokens further, with the blocks that are free."""
        held = (view.num_blocks + min(self._free)) * self._state.block_size
        return max(view.num_computed, min(view.num_tokens, view.num_computed + num_tokens, held))

    def _take(self, view: SequenceView, stop: int) -> None:
        num_new = num_blocks_for(stop, self._state.block_size) - view.num_blocks
        if num_new > 0:
            self._free = BlockCounts(self._free.num_global - num_new, self._free.num_local - num_new)
        self._tokens_left -= stop - view.num_computed
        self.chunks[view.seq_id] = Chunk(view.seq_id, view.num_computed, stop)

    def _preempt_newest(self, needy: SequenceView) -> bool:
        """Sends back the newest sequence; False when that is `needy` itself. Whoever is newer has no chunk yet.

        A block that two share of those who are sent back is free too; the next plan will know.
        """
        if self._running[-1] is needy:
            return False
        view = self._running.pop()
        self._free = BlockCounts(
            self._free.num_global + view.num_alone.num_global, self._free.num_local + view.num_alone.num_local
        )
        self.preempted.append(view.seq_id)
        return True

    def _after(self, view: SequenceView) -> SequenceView:
        """The same sequence with the blocks that the plan gives it."""
        chunk = self.chunks.get(view.seq_id)
        if chunk is None:
            return view
        num_new = max(0, num_blocks_for(chunk.stop, self._state.block_size) - view.num_blocks)
        num_alone = BlockCounts(view.num_alone.num_global + num_new, view.num_alone.num_local + num_new)
        return SequenceView(view.seq_id, view.num_tokens, chunk.stop, view.num_blocks + num_new, num_alone)


def _need(state: SchedulerState, view: SequenceView) -> BlockCounts:
    """The blocks of a whole prompt and its first token, but those that others have already."""
    num_new = num_blocks_for(view.num_tokens + 1, state.block_size) - view.num_blocks
    num_global, num_local = view.num_alone
    return BlockCounts(num_global + num_new, min(num_local + num_new, state.max_local_blocks))


def _spare(state: SchedulerState, free: BlockCounts, running: tuple[SequenceView, ...]) -> BlockCounts:
    """What is free and not promised: what running prefills still need, and a block for everybody's next tokens."""
    num_global, num_local = free
    for view in running:
        num_missing = max(0, num_blocks_for(view.num_tokens, state.block_size) - view.num_blocks)
        num_global -= num_missing + 1
        num_local -= min(num_missing, max(0, state.max_local_blocks - view.num_alone.num_local)) + 1
    return BlockCounts(num_global, num_local)
