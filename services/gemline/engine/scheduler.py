"""What the next step computes: a pure function from the state and a budget to a plan. Knows no torch; moves nothing.

Order of claims: sequences that decode, then those whose prefill has begun, then the queue; within each the oldest
first. Whoever cannot get a block may send newer sequences back to the queue, never older ones, so the oldest
sequence always goes on and every sequence ends.
"""

from dataclasses import dataclass

from gemline.engine.blocks import BlockCounts, num_blocks_for


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may hold."""

    max_batch_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True)
class SequenceView:
    """What the scheduler needs to know of a sequence."""

    seq_id: int
    num_tokens: int  # to be computed before it can be given its next token
    num_computed: int
    num_blocks: int  # of the global pool that it has; both its tables reach as far
    num_local_held: int  # blocks of the local pool that it has


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """Who is there, the oldest first, and what is free."""

    running: tuple[SequenceView, ...]
    waiting: tuple[SequenceView, ...]
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
    decoding = [view for view in state.running if view.num_tokens - view.num_computed == 1]
    prefilling = [view for view in state.running if view.num_tokens - view.num_computed > 1]
    draft.go_on(decoding)
    draft.go_on(prefilling)
    admitted = [] if draft.preempted else draft.admit(budget.max_running)
    return Plan(tuple(draft.preempted), tuple(admitted), tuple(draft.chunks.values()))


def has_room(state: SchedulerState, budget: Budget, num_tokens: int) -> bool:
    """Whether a sequence of that many tokens could be admitted now, behind all that wait."""
    if state.waiting or len(state.running) + state.num_reserved >= budget.max_running:
        return False
    need, spare = _need(state, num_tokens), _spare(state, state.free, state.running)
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

    def go_on(self, views: list[SequenceView]) -> None:
        """Gives each as many tokens as it can use, the oldest first."""
        for view in views:
            if self._tokens_left and view.seq_id not in self.preempted:
                self._go_on(view)

    def _go_on(self, view: SequenceView) -> None:
        while (stop := self._reach(view)) == view.num_computed:
            if not self._preempt_newest(view):
                return  # it keeps its blocks and waits for someone to end
        self._take(view, stop)

    def admit(self, max_running: int) -> list[int]:
        """Takes from the front of the queue whoever fits whole, so that nobody is admitted to be sent back."""
        num_free_places = max_running - len(self._running) - self._state.num_reserved
        spare = _spare(self._state, self._free, tuple(self._after(view) for view in self._running))
        admitted: list[int] = []
        for view in self._state.waiting[: max(num_free_places, 0)]:
            need = _need(self._state, view.num_tokens)
            spare = BlockCounts(spare.num_global - need.num_global, spare.num_local - need.num_local)
            if not self._tokens_left or min(spare) < 0:
                break
            self._take(view, self._reach(view))
            admitted.append(view.seq_id)
        return admitted

    def _reach(self, view: SequenceView) -> int:
        """Up to which position it could be computed, by its tokens, the tokens left and the free blocks."""
        held = (view.num_blocks + min(self._free)) * self._state.block_size
        return max(view.num_computed, min(view.num_tokens, view.num_computed + self._tokens_left, held))

    def _take(self, view: SequenceView, stop: int) -> None:
        num_new = max(0, num_blocks_for(stop, self._state.block_size) - view.num_blocks)
        self._free = BlockCounts(self._free.num_global - num_new, self._free.num_local - num_new)
        self._tokens_left -= stop - view.num_computed
        self.chunks[view.seq_id] = Chunk(view.seq_id, view.num_computed, stop)

    def _preempt_newest(self, needy: SequenceView) -> bool:
        """Sends back the newest sequence that is newer than `needy` and not in the plan; False when there is none."""
        for index in range(len(self._running) - 1, -1, -1):
            view = self._running[index]
            if view is needy:
                return False
            if view.seq_id not in self.chunks:
                del self._running[index]
                self._free = BlockCounts(
                    self._free.num_global + view.num_blocks, self._free.num_local + view.num_local_held
                )
                self.preempted.append(view.seq_id)
                return True
        return False

    def _after(self, view: SequenceView) -> SequenceView:
        """The same sequence with the blocks that the plan gives it."""
        if view.seq_id not in self.chunks:
            return view
        stop = self.chunks[view.seq_id].stop
        num_blocks = max(view.num_blocks, num_blocks_for(stop, self._state.block_size))
        num_local_held = view.num_local_held + num_blocks - view.num_blocks
        return SequenceView(view.seq_id, view.num_tokens, stop, num_blocks, num_local_held)


def _need(state: SchedulerState, num_tokens: int) -> BlockCounts:
    """The blocks of a whole prompt and its first token."""
    num_global = num_blocks_for(num_tokens + 1, state.block_size)
    return BlockCounts(num_global, min(num_global, state.max_local_blocks))


def _spare(state: SchedulerState, free: BlockCounts, running: tuple[SequenceView, ...]) -> BlockCounts:
    """What is free and not promised: what running prefills still need, and a block for everybody's next tokens."""
    num_global, num_local = free
    for view in running:
        num_missing = max(0, num_blocks_for(view.num_tokens, state.block_size) - view.num_blocks)
        num_global -= num_missing + 1
        num_local -= min(num_missing, max(0, state.max_local_blocks - view.num_local_held)) + 1
    return BlockCounts(num_global, num_local)
