"""What the next step computes: a pure function from the state and a budget to a plan. Knows no torch; moves nothing.

Order of claims: those that run, the oldest first, then the queue. A prefill leaves a token of the step for each newer
sequence that decodes. Whoever cannot get a block sends newer sequences back to the queue, never older ones, so the
oldest goes on in every step that has a token for it, and every sequence ends.
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

    @property
    def decodes(self) -> bool:
        """Whether one token is all it lacks; otherwise it prefills."""
        return self.num_tokens - self.num_computed == 1


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
    draft.go_on()
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
        spare = _spare(self._state, self._free, tuple(self._after(view) for view in self._running))
        admitted: list[int] = []
        for view in self._state.waiting[: max(num_free_places, 0)]:
            need = _need(self._state, view.num_tokens)
            spare = BlockCounts(spare.num_global - need.num_global, spare.num_local - need.num_local)
            if not self._tokens_left or min(spare) < 0:
                break
            self._take(view, self._reach(view, self._tokens_left))
            admitted.append(view.seq_id)
        return admitted

    def _reach(self, view: SequenceView, num_tokens: int) -> int:
        """Up to which position it could be computed: so many tokens further, with the blocks that are free."""
        held = (view.num_blocks + min(self._free)) * self._state.block_size
        return max(view.num_computed, min(view.num_tokens, view.num_computed + num_tokens, held))

    def _take(self, view: SequenceView, stop: int) -> None:
        num_new = max(0, num_blocks_for(stop, self._state.block_size) - view.num_blocks)
        self._free = BlockCounts(self._free.num_global - num_new, self._free.num_local - num_new)
        self._tokens_left -= stop - view.num_computed
        self.chunks[view.seq_id] = Chunk(view.seq_id, view.num_computed, stop)

    def _preempt_newest(self, needy: SequenceView) -> bool:
        """Sends back the newest sequence; False when that is `needy` itself. Whoever is newer has no chunk yet."""
        if self._running[-1] is needy:
            return False
        view = self._running.pop()
        self._free = BlockCounts(self._free.num_global + view.num_blocks, self._free.num_local + view.num_local_held)
        self.preempted.append(view.seq_id)
        return True

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
