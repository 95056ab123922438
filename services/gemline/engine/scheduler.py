"""What the next step computes: a pure function from the state and a budget to a plan. Knows no torch; moves nothing.

Blocks go by age: those that run, the oldest first, then the queue. Whoever cannot get a block sends newer sequences
back to the queue, never older ones, so the oldest goes on in every step that has a token for it, and every sequence
ends. Tokens of a step go to streams, one each, then to prompts by rank: by how many older sequences their tenant has
here. So the question of a tenant that has nothing else here is computed before what a flood has sent ahead of it; and
a rank falls as those before it end, so nobody is passed over for ever.
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
    rank: int = 0  # how many older sequences its tenant has in the engine

    @property
    def decodes(self) -> bool:
        """Whether one token is all it lacks; otherwise it prefills."""
        return self.num_tokens - self.num_computed == 1


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """Who is there, and what is free: what the prefix cache would give up is."""

    running: tuple[SequenceView, ...]  # the oldest first
    waiting: tuple[SequenceView, ...]  # the front of the queue, which goes by rank, then by age
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
    draft.top_up()
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
        """Gives each that runs the tokens that are meant for it, the oldest first."""
        meant = self._meant()
        for view in self._running:  # which loses those that are sent back, at its end
            self._go_on(view, min(self._tokens_left, meant.get(view.seq_id, 0)))

    def top_up(self) -> None:
        """What is left, for a stream ended or a prompt could not begin, goes to prompts that run."""
        for view in self._running:
            after = self._after(view)
            if not view.decodes and (stop := self._reach(after, self._tokens_left)) > after.num_computed:
                self._take(after, stop)

    def _meant(self) -> dict[int, int]:
        """Tokens of the step by sequence, if all get the blocks they need."""
        num_left = self._tokens_left
        meant = {view.seq_id: 1 for view in self._running if view.decodes}
        num_left -= len(meant)
        prompts = [view for view in (*self._running, *self._state.waiting) if view.seq_id not in meant]
        for view in sorted(prompts, key=lambda view: view.rank):  # stable: by age among equals
            meant[view.seq_id] = max(0, min(num_left, view.num_tokens - view.num_computed))
            num_left -= meant[view.seq_id]
        return meant

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
        begun = self.chunks.get(view.seq_id)
        self.chunks[view.seq_id] = Chunk(view.seq_id, view.num_computed if begun is None else begun.start, stop)

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
        return SequenceView(view.seq_id, view.num_tokens, chunk.stop, view.num_blocks + num_new, num_alone, view.rank)


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
