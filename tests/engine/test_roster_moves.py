"""Roster, scheduler and prefix cache under any order of moves, with what every slot holds written beside it.

No model: a slot is given the whole text up to its position, and whoever reads one must find its own text there.
"""

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.block_account import check_blocks, num_common

from gemline.engine.blocks import BlockCounts, BlockTable, num_blocks_for
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.engine.roster import Roster
from gemline.engine.scheduler import Budget, has_room, schedule
from gemline.engine.sequence import Sequence, Status

CONTEXT = 48
SALTS = st.sampled_from([b"", b"one", b"two"])
TEXTS = [tuple(range(CONTEXT)), (5,) * CONTEXT, (*range(12), *range(30, 30 + CONTEXT))]
PUBLIC = TEXTS[0][:9]  # a public prefix: everybody shares its whole blocks
Text = tuple[bytes, tuple[int, ...]]


class RosterMoves(RuleBasedStateMachine):
    """Prompts are beginnings of few texts, so that they share much."""

    @initialize(
        block_size=st.integers(1, 5),
        window=st.integers(1, 14),
        max_batch_tokens=st.integers(1, 40),
        max_running=st.integers(1, 5),
        num_spare=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    )
    def begin(
        self, block_size: int, window: int, max_batch_tokens: int, max_running: int, num_spare: tuple[int, int]
    ) -> None:
        new = block_size - 1 + max_batch_tokens
        max_local = num_blocks_for(window - 1, block_size) + num_blocks_for(new, block_size)
        num_context = num_blocks_for(CONTEXT, block_size)
        sizes = BlockCounts(num_context + num_spare[0], min(num_context, max_local) + num_spare[1])
        self.roster = Roster(sizes, block_size, window, max_local, "revision")
        self.sizes, self.block_size, self.window = sizes, block_size, window
        self.budget = Budget(max_batch_tokens, max_running)
        self.seq_ids = count(1)
        self.salts: dict[int, bytes] = {}
        self.num_public: dict[int, int] = {}  # tokens of public blocks
        self.ended: list[Sequence] = []
        self.written: tuple[dict[int, Text], dict[int, Text]] = ({}, {})  # by slot, of either pool

    def request(self, tokens: tuple[int, ...], num_more: int, salt: bytes, hold: bool = False) -> EngineRequest:
        params = SamplingParams(max_tokens=min(num_more, CONTEXT - len(tokens)))
        seq_id = next(self.seq_ids)
        num_public = num_common(tokens, PUBLIC)
        self.salts[seq_id], self.num_public[seq_id] = salt, num_public - num_public % self.block_size
        return EngineRequest(seq_id, tokens, len(tokens), params, hold, salt, num_public)

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.integers(1, 40),
        num_more=st.integers(1, 20),
        salt=SALTS,
        hold=st.booleans(),
    )
    def submit(self, text: tuple[int, ...], length: int, num_more: int, salt: bytes, hold: bool) -> None:
        self.roster.enqueue(self.request(text[:length], num_more, salt, hold and length % 3 == 0))

    @rule(data=st.data(), more=st.lists(st.integers(0, 2), min_size=1, max_size=6), num_more=st.integers(1, 8))
    def next_turn(self, data: st.DataObject, more: list[int], num_more: int) -> None:
        """Goes on from what another one has come to, be it there, arriving or ended."""
        known = [*self.ended[-8:], *self.roster.by_id.values()]
        if known:
            earlier = data.draw(st.sampled_from(known))
            tokens = (*earlier.token_ids, *more)
            if len(tokens) < CONTEXT:
                self.roster.enqueue(self.request(tokens, num_more, self.salts[earlier.seq_id]))

    @rule(text=st.sampled_from(TEXTS), length=st.integers(1, 40), salt=SALTS)
    def reserve(self, text: tuple[int, ...], length: int, salt: bytes) -> None:
        request = self.request(text[:length], 4, salt)
        if has_room(self.roster.state(self.budget), self.budget, self.roster.newcomer(request)):
            self.roster.reserve(request)

    @rule(data=st.data(), succeeds=st.booleans())
    def end_import(self, data: st.DataObject, succeeds: bool) -> None:
        importing = [s for s in self.roster.by_id.values() if s.status is Status.IMPORTING]
        if not importing:
            return
        sequence = data.draw(st.sampled_from(importing))
        if not succeeds:
            self.roster.send_back(sequence)
            return
        start, stop = sequence.num_computed, sequence.num_tokens
        self.write(sequence, 0, sequence.global_table, start, stop)
        self.write(sequence, 1, sequence.local_table, max(start, stop - self.window + 1), stop)
        self.roster.computed(sequence, stop)
        self.roster.start(sequence)
        self.give(sequence)

    @rule(data=st.data(), failed=st.booleans())
    def go(self, data: st.DataObject, failed: bool) -> None:
        if self.roster.by_id:
            sequence = self.roster.by_id[data.draw(st.sampled_from(sorted(self.roster.by_id)))]
            self.end(sequence, failed=failed and sequence.status is Status.RUNNING)

    @rule(num_steps=st.integers(1, 10))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step_once()

    def step_once(self) -> None:
        plan = schedule(self.roster.state(self.budget), self.budget)
        self.roster.carry_out(plan)
        assert plan.num_tokens <= self.budget.max_batch_tokens
        for chunk in plan.chunks:  # all write before anybody's blocks move on
            sequence = self.roster.by_id[chunk.seq_id]
            self.read(sequence, chunk.start)
            for pool, table in enumerate((sequence.global_table, sequence.local_table)):
                self.write(sequence, pool, table, chunk.start, chunk.stop)
        for chunk in plan.chunks:
            sequence = self.roster.by_id[chunk.seq_id]
            self.roster.computed(sequence, chunk.stop)
            if chunk.stop == sequence.num_tokens:
                self.give(sequence)

    def give(self, sequence: Sequence) -> None:
        if sequence.hold:
            self.roster.hold(sequence)
        elif sequence.append(sum(sequence.token_ids) % 3):
            self.end(sequence)

    def end(self, sequence: Sequence, failed: bool = False) -> None:
        self.roster.remove(sequence.seq_id, failed=failed)
        self.ended.append(sequence)

    def text(self, sequence: Sequence, position: int) -> Text:
        is_public = position < self.num_public[sequence.seq_id]
        return b"public" if is_public else self.salts[sequence.seq_id], tuple(sequence.token_ids[: position + 1])

    def write(self, sequence: Sequence, pool: int, table: BlockTable, start: int, stop: int) -> None:
        for position, slot in zip(range(start, stop), table.slots(start, stop), strict=True):
            self.written[pool][slot] = self.text(sequence, position)

    def read(self, sequence: Sequence, stop: int) -> None:
        """What the query at `stop` reads, itself left out."""
        for pool, table, start in (
            (0, sequence.global_table, 0),
            (1, sequence.local_table, max(0, stop - self.window + 1)),
        ):
            for position, slot in zip(range(start, stop), table.slots(start, stop), strict=True):
                assert self.written[pool][slot] == self.text(sequence, position)

    @invariant()
    def every_block_is_free_or_accounted_for(self) -> None:
        if hasattr(self, "roster"):
            check_blocks(self.roster)

    def teardown(self) -> None:
        if not hasattr(self, "roster"):
            return
        for sequence in tuple(self.roster.by_id.values()):
            if sequence.hold or sequence.status is Status.IMPORTING:
                self.end(sequence)
        num_tokens = sum(s.num_prompt_tokens + s.params.max_tokens for s in self.roster.by_id.values())
        for _ in range(5 * num_tokens + 10):
            if not self.roster.by_id:
                break
            self.step_once()
        assert not self.roster.by_id, "somebody starves"
        assert self.roster.free == self.sizes
        check_blocks(self.roster)


TestRosterMoves = RosterMoves.TestCase
TestRosterMoves.settings = settings(max_examples=150, stateful_step_count=40)
