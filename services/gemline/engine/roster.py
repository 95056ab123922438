"""Who is in the engine, in which state, with which blocks: carries plans out. Knows no model and no cache."""

from bisect import insort

from gemline.engine.blocks import BlockCounts, BlockPool, num_blocks_for
from gemline.engine.events import FinishReason, ResidencyChange
from gemline.engine.pacing import Load
from gemline.engine.prefix_cache import PrefixCache
from gemline.engine.prefix_tree import CacheUse, Match
from gemline.engine.requests import EngineRequest
from gemline.engine.scheduler import Budget, Plan, SchedulerState, SequenceView
from gemline.engine.sequence import Sequence, Status


class UnknownSequence(LookupError):
    """No sequence of that number is in the state the caller means; it may have ended or been cancelled."""


class Roster:
    """Every live sequence, the oldest first, in whatever state."""

    def __init__(
        self,
        sizes: BlockCounts,
        block_size: int,
        window: int,
        max_local_blocks: int,
        model_revision: str | None,
        *,
        tenant_share: float = 0.5,
        looks_ahead: bool = False,
    ) -> None:
        """Without a revision to name blocks by, none is kept for others. `looks_ahead`: steps are queued ahead."""
        self._global_pool = BlockPool(sizes.num_global)
        self._local_pool = BlockPool(sizes.num_local)
        self._cache = PrefixCache(self._global_pool, self._local_pool, block_size, window, model_revision, tenant_share)
        self._block_size = block_size
        self._window = window
        self._max_local_blocks = max_local_blocks
        self._looks_ahead = looks_ahead
        self._num_arrivals = 0
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._matches: dict[int, Match] = {}  # of those in the queue that the scheduler was shown last
        self._known_ranks: dict[int, int] | None = None  # until somebody comes or goes
        self.by_id: dict[int, Sequence] = {}

    @property
    def free(self) -> BlockCounts:
        """Blocks that no sequence has; the prefix cache may keep them until they are needed."""
        return BlockCounts(self._global_pool.num_free, self._local_pool.num_free)

    @property
    def evictable(self) -> BlockCounts:
        """Those of them that the prefix cache keeps."""
        return BlockCounts(self._global_pool.num_idle, self._local_pool.num_idle)

    @property
    def cache_use(self) -> CacheUse:
        """What the prefix cache was good for since the start."""
        return self._cache.use

    def take_residency(self) -> ResidencyChange:
        """What has changed in the prefix cache for routers, since this was last asked."""
        return self._cache.take_residency()

    @property
    def num_waiting(self) -> int:
        """Sequences without blocks."""
        return len(self._waiting)

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of prompts that are to be computed here, as far as is known before their cached ones are found."""
        return sum(s.num_tokens - s.num_computed for s in (*self._running, *self._waiting) if not s.decodes)

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def num_reserved(self) -> int:
        """Sequences that own blocks but are not in the batch."""
        return len(self.by_id) - len(self._waiting) - len(self._running)

    def weigh(self) -> Load:
        """What the next step's pace depends on. Whoever has arrived is an elder of the streams that begin with it.

        A first token was given by the step before, and who came during that one waited for it as the stream did.
        """
        ranks = self._ranks()
        streams = [sequence for sequence in self._running if sequence.decodes]
        for stream in streams:
            if stream.began is None:
                stream.began = self._num_arrivals
        prompts = [sequence for sequence in (*self._running, *self._waiting) if not sequence.decodes]
        following = min(prompts, key=lambda prompt: ranks[prompt.seq_id], default=None)
        by_newcomer = following is not None and any(
            stream.began is not None and stream.began < following.arrival for stream in streams
        )
        num_first = sum(prompt.num_tokens - prompt.num_computed for prompt in prompts if not ranks[prompt.seq_id])
        return Load(len(streams), by_newcomer, num_first)

    def state(self, budget: Budget) -> SchedulerState:
        """What the scheduler needs to see; of the queue no more than one step could begin, and what each would find."""
        num_places = max(0, budget.max_running - len(self._running) - self.num_reserved)
        ranks = self._ranks()
        return SchedulerState(
            running=tuple(self._running_view(sequence, ranks[sequence.seq_id]) for sequence in self._running),
            waiting=self._waiting_views(ranks, num_places, budget.max_batch_tokens),
            num_waiting=len(self._waiting),
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

    def newcomer(self, request: EngineRequest) -> SequenceView:
        """The request as the scheduler would see it at the end of the queue, with what it would find in the cache."""
        sequence = self._begin(request, arrival=0)
        return self._view(sequence, self._cache.match(sequence))

    def reserve(self, request: EngineRequest) -> int:
        """Blocks for all its tokens but, in the local pool, those that its first decoded token cannot see.

        Returns how many of its tokens the prefix cache has: the others are to be imported.
        """
        sequence = self._register(request)
        sequence.status = Status.IMPORTING
        sequence.num_computed = self._cache.admit(sequence, self._cache.match(sequence))
        sequence.num_cached = sequence.num_resident = sequence.num_computed
        self._cache.expect_import(sequence, max(0, sequence.num_tokens - self._window + 1))
        self._cover(sequence, sequence.num_tokens)
        return sequence.num_computed

    def carry_out(self, plan: Plan) -> None:
        """Frees what the preempted have, admits, and gives every chunk its blocks."""
        for seq_id in plan.preempted:
            self.send_back(self.by_id[seq_id])
        for seq_id in plan.admitted:
            self._admit(self.by_id[seq_id])
        for chunk in plan.chunks:
            self._cover(self.by_id[chunk.seq_id], chunk.stop)
        if self._looks_ahead:
            for chunk in plan.chunks:
                self._cover_ahead(self.by_id[chunk.seq_id], chunk.stop + 1)

    def start(self, sequence: Sequence) -> None:
        """Into the batch, at its age."""
        sequence.status = Status.RUNNING
        insort(self._running, sequence, key=_arrival)

    def computed(self, sequence: Sequence, num_computed: int) -> None:
        """Its tokens up to there are in the cache: its full blocks are published, its passed local blocks are free.

        Passed is what neither a later token of it can see nor one that goes on from its last full block.
        """
        num_full = num_computed - num_computed % self._block_size
        is_fuller = sequence.num_computed < num_full
        sequence.num_computed = num_computed
        if is_fuller or num_computed == sequence.num_given:
            self._cache.publish(sequence)
            self._cache.release_before(sequence, num_full - self._window + 1)

    def answer(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        """One more token of its answer; says whether, and why, it was the last."""
        return sequence.append(token_id)

    def hold(self, sequence: Sequence) -> None:
        """Out of the batch; its blocks stay until `remove`."""
        self._running.remove(sequence)
        sequence.status = Status.HELD

    def send_back(self, sequence: Sequence) -> None:
        """Into the queue again, at its age, without blocks: what nobody needs them for meanwhile it will find again."""
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        self._cache.leave(sequence, comes_back=True)
        sequence.num_computed = 0
        self._wait(sequence)

    def remove(self, seq_id: int, *, failed: bool = False) -> None:
        """Forgets it and frees its blocks, whatever its state; an unknown number is fine.

        Its full blocks stay in the prefix cache, but not those of a sequence that failed.
        """
        sequence = self.by_id.pop(seq_id, None)
        if sequence is None:
            return
        self._known_ranks = None
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        if failed:
            self._cache.retract(sequence)
        else:
            self._cache.leave(sequence)

    def _register(self, request: EngineRequest) -> Sequence:
        if request.seq_id in self.by_id:
            raise ValueError(f"sequence {request.seq_id} is already there")
        self._num_arrivals += 1
        sequence = self._begin(request, self._num_arrivals)
        self.by_id[request.seq_id] = sequence
        self._known_ranks = None
        return sequence

    def _begin(self, request: EngineRequest, arrival: int) -> Sequence:
        if request.params.prompt_logprobs:  # what a cache has is not computed again, and has none
            return Sequence.begin(request, arrival, self._block_size, self._cache.begin(b"", 0))
        trail = self._cache.begin(request.cache_salt, request.num_public_tokens)
        return Sequence.begin(request, arrival, self._block_size, trail)

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self._waiting, sequence, key=_arrival)

    def _admit(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        match = self._matches.pop(sequence.seq_id, None) or self._cache.match(sequence)
        is_first = sequence.trail is not None and not sequence.trail.was_admitted
        sequence.num_computed = self._cache.admit(sequence, match)
        if is_first:
            sequence.num_cached = sequence.num_resident = sequence.num_computed
        self.start(sequence)

    def _cover(self, sequence: Sequence, stop: int) -> None:
        """Appends the blocks that positions before `stop` lack."""
        num_blocks = num_blocks_for(stop, self._block_size)
        if sequence.global_table.num_blocks >= num_blocks:  # and the local table reaches as far
            return
        for table, pool, is_local in (
            (sequence.global_table, self._global_pool, False),
            (sequence.local_table, self._local_pool, True),
        ):
            while table.num_blocks < num_blocks:
                if not pool.num_empty:
                    self._cache.make_room(is_local=is_local)
                table.append(pool.allocate(sequence.arrival))

    def _cover_ahead(self, sequence: Sequence, stop: int) -> None:
        """The block for the token after the next, where nobody could miss it."""
        if sequence.num_tokens < stop and sequence.may_go_on and min(self.free) > len(self.by_id):
            self._cover(sequence, stop)

    def _ranks(self) -> dict[int, int]:
        """For each sequence, how many older ones its tenant has here."""
        if self._known_ranks is not None:
            return self._known_ranks
        num_seen: dict[bytes, int] = {}
        ranks: dict[int, int] = {}
        for seq_id, sequence in self.by_id.items():  # the oldest first
            ranks[seq_id] = num_seen.get(sequence.tenant, 0)
            num_seen[sequence.tenant] = ranks[seq_id] + 1
        self._known_ranks = ranks
        return ranks

    def _running_view(self, sequence: Sequence, rank: int) -> SequenceView:
        holder = sequence.arrival
        return SequenceView(
            sequence.seq_id,
            len(sequence.token_ids),
            sequence.num_computed,
            sequence.global_table.num_blocks,
            BlockCounts(self._global_pool.num_alone(holder), self._local_pool.num_alone(holder)),
            rank,
        )

    def _waiting_views(self, ranks: dict[int, int], num_places: int, num_tokens: int) -> tuple[SequenceView, ...]:
        """With the prefix that each would find. Whoever comes after the first that cannot be begun is left out."""
        self._matches.clear()
        views: list[SequenceView] = []
        num_blocks_left = self._global_pool.num_free
        queue = sorted(self._waiting, key=lambda sequence: ranks[sequence.seq_id])  # by age among equals
        for sequence in queue[:num_places]:
            match = self._matches[sequence.seq_id] = self._cache.match(sequence)
            view = self._view(sequence, match, ranks[sequence.seq_id])
            views.append(view)
            num_tokens -= sequence.num_tokens - view.num_computed
            num_blocks_left -= num_blocks_for(sequence.num_tokens, self._block_size) - match.num_blocks
            if num_tokens <= 0 or num_blocks_left < 0:
                break
        return tuple(views)

    def _view(self, sequence: Sequence, match: Match, rank: int = 0) -> SequenceView:
        num_found = match.num_blocks * self._block_size
        return SequenceView(sequence.seq_id, sequence.num_tokens, num_found, match.num_blocks, match.num_idle, rank)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
