"""Who is in the engine, in which state, with which blocks: carries plans out. Knows no model and no cache."""

from bisect import insort
from collections.abc import Sequence as SequenceOf

from gemline.engine.blocks import BlockCounts, BlockPool, BlockTable, num_blocks_for
from gemline.engine.requests import EngineRequest
from gemline.engine.scheduler import Plan, SchedulerState, SequenceView
from gemline.engine.sequence import Sequence, Status


class UnknownSequence(LookupError):
    """No sequence of that number is in the state the caller means; it may have ended or been cancelled."""


class Roster:
    """Every live sequence. Those that wait and those that run are kept in lists, the oldest first."""

    def __init__(self, sizes: BlockCounts, block_size: int, window: int, max_local_blocks: int) -> None:
        self._global_pool = BlockPool(sizes.num_global)
        self._local_pool = BlockPool(sizes.num_local)
        self._block_size = block_size
        self._window = window
        self._max_local_blocks = max_local_blocks
        self._num_arrivals = 0
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.by_id: dict[int, Sequence] = {}

    @property
    def free(self) -> BlockCounts:
        """Blocks that nobody has."""
        return BlockCounts(self._global_pool.num_free, self._local_pool.num_free)

    @property
    def num_waiting(self) -> int:
        """Sequences without blocks."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def num_reserved(self) -> int:
        """Sequences that own blocks but are not in the batch."""
        return len(self.by_id) - len(self._waiting) - len(self._running)

    def state(self, max_waiting: int) -> SchedulerState:
        """What the scheduler needs to see; of the queue no more than its first `max_waiting`."""
        return SchedulerState(
            running=_views(self._running),
            waiting=_views(self._waiting[:max_waiting]),
            num_reserved=self.num_reserved,
            free=self.free,
            block_size=self._block_size,
            max_local_blocks=self._max_local_blocks,
        )

    def find(self, seq_id: int, status: Status) -> Sequence:
        """The sequence of that number and status. Raises UnknownSequence."""
        sequence = self.by_id.get(seq_id)
        if sequence is None or sequence.status is not status:
            raise UnknownSequence(f"sequence {seq_id} is not {status.name.lower()}")
        return sequence

    def enqueue(self, request: EngineRequest) -> None:
        """To the end of the queue."""
        self._wait(self._register(request))

    def reserve(self, request: EngineRequest) -> None:
        """Blocks for all its tokens but, in the local pool, those that its first decoded token cannot see."""
        sequence = self._register(request)
        sequence.status = Status.IMPORTING
        sequence.local_table.skip_before(max(0, sequence.num_tokens - self._window + 1))
        self._cover(sequence, sequence.num_tokens)

    def carry_out(self, plan: Plan) -> None:
        """Frees what the preempted have, admits, and gives every chunk its blocks."""
        for seq_id in plan.preempted:
            self.send_back(self.by_id[seq_id])
        for seq_id in plan.admitted:
            self._waiting.remove(self.by_id[seq_id])
            self.start(self.by_id[seq_id])
        for chunk in plan.chunks:
            self._cover(self.by_id[chunk.seq_id], chunk.stop)

    def start(self, sequence: Sequence) -> None:
        """Into the batch, at its age."""
        sequence.status = Status.RUNNING
        insort(self._running, sequence, key=_arrival)

    def computed(self, sequence: Sequence, num_computed: int) -> None:
        """Its tokens up to there are in the cache: the local blocks that no later token can see are free at once."""
        sequence.num_computed = num_computed
        self._local_pool.free(sequence.local_table.release_before(num_computed - self._window + 1))

    def hold(self, sequence: Sequence) -> None:
        """Out of the batch; its blocks stay until `remove`."""
        self._running.remove(sequence)
        sequence.status = Status.HELD

    def send_back(self, sequence: Sequence) -> None:
        """Into the queue again, at its age, without blocks: all its tokens will be computed anew."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self._wait(sequence)

    def remove(self, seq_id: int) -> None:
        """Forgets it and frees its blocks, whatever its state; an unknown number is fine."""
        sequence = self.by_id.pop(seq_id, None)
        if sequence is None:
            return
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        self._release(sequence)

    def _register(self, request: EngineRequest) -> Sequence:
        if request.seq_id in self.by_id:
            raise ValueError(f"sequence {request.seq_id} is already there")
        self._num_arrivals += 1
        sequence = Sequence.begin(request, self._num_arrivals, self._block_size)
        self.by_id[request.seq_id] = sequence
        return sequence

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self._waiting, sequence, key=_arrival)

    def _cover(self, sequence: Sequence, stop: int) -> None:
        """Appends the blocks that positions before `stop` lack."""
        num_blocks = num_blocks_for(stop, self._block_size)
        for table, pool in self._owned(sequence):
            while table.num_blocks < num_blocks:
                table.append(pool.allocate())

    def _release(self, sequence: Sequence) -> None:
        for table, pool in self._owned(sequence):
            pool.free(table.release_all())

    def _owned(self, sequence: Sequence) -> tuple[tuple[BlockTable, BlockPool], ...]:
        return ((sequence.global_table, self._global_pool), (sequence.local_table, self._local_pool))


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _views(sequences: SequenceOf[Sequence]) -> tuple[SequenceView, ...]:
    return tuple(
        SequenceView(
            seq_id=sequence.seq_id,
            num_tokens=sequence.num_tokens,
            num_computed=sequence.num_computed,
            num_blocks=sequence.global_table.num_blocks,
            num_local_held=sequence.local_table.num_held,
        )
        for sequence in sequences
    )
