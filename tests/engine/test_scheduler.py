"""The scheduler's rules, for any state: it is a pure function, so they cost microseconds."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.blocks import BlockCounts, num_blocks_for
from gemline.engine.scheduler import Budget, Chunk, Plan, SchedulerState, SequenceView, has_room, schedule

WINDOW = 6


@st.composite
def views(draw: st.DrawFn, seq_id: int, block_size: int) -> SequenceView:
    num_tokens = draw(st.integers(1, 40))
    num_computed = draw(st.sampled_from([num_tokens - 1, draw(st.integers(0, num_tokens - 1))]))
    num_blocks = num_blocks_for(num_computed, block_size)
    num_held = num_blocks - max(0, num_computed - WINDOW + 1) // block_size
    num_alone = BlockCounts(draw(st.integers(0, num_blocks)), draw(st.integers(0, num_held)))  # the rest is shared
    return SequenceView(seq_id, num_tokens, num_computed, num_blocks, num_alone, draw(st.integers(0, seq_id)))


@st.composite
def waiting_views(draw: st.DrawFn, seq_id: int, block_size: int, free: BlockCounts) -> SequenceView:
    """What it would find in the cache is held by others or, as far as blocks are free, by nobody."""
    num_tokens = draw(st.integers(1, 40))
    num_found = draw(st.integers(0, (num_tokens - 1) // block_size))
    num_idle = BlockCounts(*(draw(st.integers(0, min(num_found, num_free))) for num_free in free))
    rank = draw(st.integers(0, 8))
    return SequenceView(seq_id, num_tokens, num_found * block_size, num_found, num_idle, rank)


@st.composite
def cases(draw: st.DrawFn) -> tuple[SchedulerState, Budget]:
    block_size = draw(st.integers(1, 5))
    budget = Budget(draw(st.integers(1, 30)), draw(st.integers(1, 8)))
    num_running = draw(st.integers(0, budget.max_running))
    running = tuple(draw(views(seq_id, block_size)) for seq_id in range(num_running))
    free = BlockCounts(draw(st.integers(0, 30)), draw(st.integers(0, 30)))
    waiting = tuple(draw(waiting_views(100 + index, block_size, free)) for index in range(draw(st.integers(0, 6))))
    state = SchedulerState(
        running=running,
        waiting=tuple(sorted(waiting, key=lambda view: view.rank)),
        num_waiting=len(waiting),
        num_reserved=draw(st.integers(0, budget.max_running - num_running)),
        free=free,
        block_size=block_size,
        max_local_blocks=num_blocks_for(WINDOW + budget.max_batch_tokens, block_size) + 1,
    )
    return state, budget


def by_id(state: SchedulerState) -> dict[int, SequenceView]:
    return {view.seq_id: view for view in (*state.running, *state.waiting)}


def num_new_blocks(state: SchedulerState, plan: Plan) -> int:
    known = by_id(state)
    return sum(max(0, num_blocks_for(c.stop, state.block_size) - known[c.seq_id].num_blocks) for c in plan.chunks)


@given(cases())
def test_a_plan_never_exceeds_its_budget(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    assert plan.num_tokens <= budget.max_batch_tokens
    num_running = len(state.running) - len(plan.preempted) + len(plan.admitted)
    assert num_running + state.num_reserved <= max(budget.max_running, len(state.running) + state.num_reserved)


@given(cases())
def test_a_plan_gives_no_block_that_is_not_free(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    freed = [by_id(state)[seq_id] for seq_id in plan.preempted]
    num_new = num_new_blocks(state, plan)
    found = [by_id(state)[seq_id] for seq_id in plan.admitted]
    for pool in (0, 1):
        num_free = state.free[pool] + sum(view.num_alone[pool] for view in freed)
        assert num_new + sum(view.num_alone[pool] for view in found) <= num_free


@given(cases())
def test_a_chunk_goes_on_where_its_sequence_stands(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    known = by_id(state)
    assert len({chunk.seq_id for chunk in plan.chunks}) == len(plan.chunks)
    for chunk in plan.chunks:
        view = known[chunk.seq_id]
        assert view.num_computed == chunk.start < chunk.stop <= view.num_tokens
        assert chunk.seq_id not in plan.preempted


@given(cases())
def test_the_queue_is_served_from_its_front(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    assert plan.admitted == tuple(view.seq_id for view in state.waiting)[: len(plan.admitted)]
    waiting = {view.seq_id for view in state.waiting}
    assert set(plan.admitted) == {chunk.seq_id for chunk in plan.chunks} & waiting


@given(cases())
def test_nobody_is_sent_back_for_a_newer_sequence(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    age = {view.seq_id: index for index, view in enumerate(state.running)}
    served = [age[chunk.seq_id] for chunk in plan.chunks if chunk.seq_id in age]
    assert all(any(other < age[seq_id] for other in served) or not served for seq_id in plan.preempted)
    assert not (plan.preempted and plan.admitted)


@given(cases())
def test_the_oldest_sequence_goes_on_when_a_block_and_a_token_can_be_had(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    if not state.running:
        return
    oldest, *others = state.running
    plan = schedule(state, budget)
    num_global = state.free.num_global + sum(view.num_alone.num_global for view in others)
    num_local = state.free.num_local + sum(view.num_alone.num_local for view in others)
    in_plan = any(chunk.seq_id == oldest.seq_id for chunk in plan.chunks)
    no_token = not oldest.decodes and sum(view.decodes for view in others) >= budget.max_batch_tokens
    assert oldest.seq_id not in plan.preempted
    assert in_plan or no_token or min(num_global, num_local) == 0


@given(cases())
def test_every_decoding_sequence_goes_on_beside_prefills(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(replace(state, free=BlockCounts(1000, 1000)), budget)
    decoding = [view.seq_id for view in state.running if view.decodes]
    planned = {chunk.seq_id for chunk in plan.chunks}
    assert planned >= set(decoding[: budget.max_batch_tokens])
    assert not plan.preempted


@given(cases())
def test_whoever_is_admitted_fits_beside_what_is_promised_already(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(state, budget)
    if not plan.admitted:
        return
    known = by_id(state)
    alive = [*state.running, *(known[seq_id] for seq_id in plan.admitted)]
    missing = sum(max(0, num_blocks_for(v.num_tokens, state.block_size) - v.num_blocks) for v in alive)
    revived = sum(known[seq_id].num_alone.num_global for seq_id in plan.admitted)
    assert missing + revived <= state.free.num_global


@given(cases())
def test_no_token_of_a_step_is_kept_from_a_prompt_that_runs(case: tuple[SchedulerState, Budget]) -> None:
    state, budget = case
    plan = schedule(replace(state, free=BlockCounts(1000, 1000)), budget)
    stops = {chunk.seq_id: chunk.stop for chunk in plan.chunks}
    behind = [view for view in state.running if stops.get(view.seq_id, view.num_computed) < view.num_tokens]
    assert not behind or plan.num_tokens == budget.max_batch_tokens


def state_of(
    running: tuple[SequenceView, ...] = (), waiting: tuple[SequenceView, ...] = (), num_free: int = 100
) -> SchedulerState:
    return SchedulerState(running, waiting, len(waiting), 0, BlockCounts(num_free, num_free), 4, 100)


def view(
    seq_id: int, num_tokens: int, num_computed: int, num_blocks: int, num_alone: int, *, rank: int = 0
) -> SequenceView:
    return SequenceView(seq_id, num_tokens, num_computed, num_blocks, BlockCounts(num_alone, num_alone), rank)


def test_prefill_gets_what_decoding_leaves_of_the_budget() -> None:
    state = state_of(
        running=(view(1, 30, 8, 2, 2), view(2, 9, 8, 2, 2), view(3, 13, 12, 3, 3)),
        waiting=(view(4, 50, 0, 0, 0), view(5, 2, 0, 0, 0)),
    )
    plan = schedule(state, Budget(max_batch_tokens=32, max_running=8))
    assert plan == Plan((), (4,), (Chunk(1, 8, 30), Chunk(2, 8, 9), Chunk(3, 12, 13), Chunk(4, 0, 8)))
    tight = schedule(state, Budget(max_batch_tokens=5, max_running=8))
    assert tight == Plan((), (), (Chunk(1, 8, 11), Chunk(2, 8, 9), Chunk(3, 12, 13)))


def test_the_prompt_of_a_tenant_that_has_nothing_else_here_goes_before_those_of_a_flood() -> None:
    flood = (view(1, 9, 8, 2, 2), view(2, 60, 8, 2, 2, rank=1), view(3, 60, 0, 0, 0, rank=2))
    state = state_of(running=flood, waiting=(view(5, 20, 0, 0, 0), view(4, 30, 0, 0, 0, rank=3)))
    plan = schedule(state, Budget(max_batch_tokens=32, max_running=8))
    assert plan == Plan((), (5,), (Chunk(1, 8, 9), Chunk(2, 8, 19), Chunk(5, 0, 20)))


def test_what_a_prompt_that_does_not_fit_leaves_goes_to_those_that_run() -> None:
    flood = (view(2, 60, 8, 2, 2, rank=1), view(3, 60, 0, 0, 0, rank=2))
    state = state_of(running=flood, waiting=(view(5, 40, 0, 0, 0),), num_free=30)
    plan = schedule(state, Budget(max_batch_tokens=64, max_running=8))
    assert plan == Plan((), (), (Chunk(2, 8, 60), Chunk(3, 0, 12)))


def test_the_newest_sequence_makes_room_for_a_decoding_one_and_not_for_the_queue() -> None:
    state = state_of(
        running=(view(1, 9, 8, 2, 2), view(2, 13, 12, 3, 3), view(3, 20, 18, 5, 5)),
        waiting=(view(4, 2, 0, 0, 0),),
        num_free=0,
    )
    plan = schedule(state, Budget(max_batch_tokens=32, max_running=8))
    assert plan == Plan((3,), (), (Chunk(1, 8, 9), Chunk(2, 12, 13)))


def test_a_newer_sequence_makes_room_for_an_older_prefill_though_it_decodes() -> None:
    state = state_of(running=(view(1, 30, 8, 2, 2), view(2, 10, 9, 3, 3)), num_free=0)
    plan = schedule(state, Budget(max_batch_tokens=32, max_running=8))
    assert plan == Plan((2,), (), (Chunk(1, 8, 20),))


def test_a_sequence_that_nobody_newer_can_help_waits_with_its_blocks() -> None:
    state = state_of(running=(view(1, 9, 8, 2, 2),), num_free=0)
    assert schedule(state, Budget(32, 8)) == Plan((), (), ())


def test_a_prompt_that_does_not_fit_whole_is_not_begun() -> None:
    state = state_of(waiting=(view(1, 40, 0, 0, 0), view(2, 2, 0, 0, 0)), num_free=10)
    assert schedule(state, Budget(8, 8)).admitted == ()
    assert schedule(state_of(waiting=state.waiting, num_free=11), Budget(8, 8)).admitted == (1,)


def test_blocks_promised_to_a_begun_prefill_are_not_given_to_the_queue() -> None:
    half_done = view(1, 40, 20, 5, 5)
    state = state_of(running=(half_done,), waiting=(view(2, 7, 0, 0, 0),), num_free=7)
    assert schedule(state, Budget(12, 8)).admitted == ()
    assert schedule(state_of(running=(half_done,), waiting=state.waiting, num_free=8), Budget(21, 8)).admitted == (2,)


def test_either_pool_can_keep_the_queue_waiting() -> None:
    waiting = (view(1, 40, 0, 0, 0),)
    for free, admitted in ((BlockCounts(11, 3), (1,)), (BlockCounts(10, 100), ()), (BlockCounts(100, 2), ())):
        state = SchedulerState((), waiting, 1, 0, free, block_size=4, max_local_blocks=3)
        assert schedule(state, Budget(8, 8)).admitted == admitted


def test_blocks_of_either_pool_are_promised_to_a_begun_prefill() -> None:
    half_done = SequenceView(1, 40, 20, 5, BlockCounts(5, 2))
    for free, room in ((BlockCounts(8, 5), True), (BlockCounts(7, 100), False), (BlockCounts(100, 4), False)):
        state = SchedulerState((half_done,), (), 0, 0, free, block_size=4, max_local_blocks=4)
        assert has_room(state, Budget(9, 8), view(9, 7, 0, 0, 0)) is room


def test_there_is_no_room_for_an_import_while_others_wait() -> None:
    assert has_room(state_of(), Budget(8, 8), view(9, 40, 0, 0, 0))
    assert not has_room(state_of(waiting=(view(2, 7, 0, 0, 0),)), Budget(8, 8), view(9, 40, 0, 0, 0))
    assert not has_room(state_of(num_free=10), Budget(8, 8), view(9, 40, 0, 0, 0))
    assert not has_room(state_of(running=(view(1, 9, 8, 2, 2),)), Budget(8, 1), view(9, 4, 0, 0, 0))


def test_a_found_prefix_that_others_hold_costs_nothing_and_one_that_nobody_holds_its_blocks() -> None:
    for num_idle, num_free, admitted in ((0, 3, (1,)), (0, 2, ()), (8, 11, (1,)), (8, 10, ())):
        state = state_of(waiting=(view(1, 40, 32, 8, num_idle),), num_free=num_free)
        assert schedule(state, Budget(8, 8)).admitted == admitted


def test_a_prompt_is_begun_behind_its_found_prefix() -> None:
    state = state_of(waiting=(view(1, 40, 32, 8, 0), view(2, 9, 8, 2, 0)), num_free=6)
    assert schedule(state, Budget(12, 8)) == Plan((), (1, 2), (Chunk(1, 32, 40), Chunk(2, 8, 9)))


def test_what_is_shared_is_not_free_when_one_of_those_who_share_it_is_sent_back() -> None:
    running = (view(1, 9, 8, 2, 2), view(2, 13, 12, 3, 0), view(3, 20, 16, 4, 1))
    plan = schedule(state_of(running=running, num_free=0), Budget(32, 8))
    assert plan == Plan((3,), (), (Chunk(1, 8, 9),))
