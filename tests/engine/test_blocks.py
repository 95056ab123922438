"""Block pools and tables: nothing is given twice, nothing is lost, a position's slot never moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gemline.engine.blocks import BlockPool, BlockTable, num_blocks_for


class PoolMoves(RuleBasedStateMachine):
    """A pool beside a plain account of who holds what."""

    @initialize(num_blocks=st.integers(0, 12))
    def begin(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.holders: dict[int, set[int]] = {}
        self.cached: set[int] = set()

    @precondition(lambda self: self.pool.num_empty)
    @rule(holder=st.integers(1, 5))
    def allocate(self, holder: int) -> None:
        block_id = self.pool.allocate(holder)
        assert 0 <= block_id < self.pool.num_blocks
        assert not self.holders.get(block_id) and block_id not in self.cached
        self.holders[block_id] = {holder}

    @rule(holder=st.integers(1, 5), data=st.data())
    def hold(self, holder: int, data: st.DataObject) -> None:
        there = [b for b in self.cached | {b for b, h in self.holders.items() if h} if holder not in self.of(b)]
        if there:
            block_id = data.draw(st.sampled_from(sorted(there)))
            self.pool.hold(block_id, holder)
            self.holders.setdefault(block_id, set()).add(holder)

    @rule(holder=st.integers(1, 5), data=st.data())
    def release(self, holder: int, data: st.DataObject) -> None:
        held = sorted(block_id for block_id, holders in self.holders.items() if holder in holders)
        gone = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
        idle = self.pool.release(gone, holder)
        for block_id in gone:
            self.holders[block_id].remove(holder)
        assert idle == [block_id for block_id in gone if block_id in self.cached and not self.of(block_id)]

    @rule(data=st.data())
    def cache(self, data: st.DataObject) -> None:
        held = sorted(block_id for block_id, holders in self.holders.items() if holders)
        if held:
            block_id = data.draw(st.sampled_from(held))
            self.pool.cache(block_id)
            self.cached.add(block_id)

    @rule(data=st.data())
    def uncache(self, data: st.DataObject) -> None:
        if self.cached:
            block_id = data.draw(st.sampled_from(sorted(self.cached)))
            self.pool.uncache(block_id)
            self.cached.remove(block_id)

    @invariant()
    def the_counts_are_those_of_the_account(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = {block_id for block_id, holders in self.holders.items() if holders}
        idle = self.cached - held
        assert self.pool.num_idle == len(idle)
        assert self.pool.num_empty == self.pool.num_blocks - len(held) - len(idle)
        assert self.pool.num_free == self.pool.num_blocks - len(held)
        for holder in range(1, 6):
            assert self.pool.num_alone(holder) == sum(holders == {holder} for holders in self.holders.values())
        assert all(self.pool.is_held(block_id) == (block_id in held) for block_id in range(self.pool.num_blocks))

    def of(self, block_id: int) -> set[int]:
        return self.holders.get(block_id, set())


TestPoolMoves = PoolMoves.TestCase


def test_a_pool_without_an_empty_block_gives_nothing() -> None:
    pool = BlockPool(1)
    pool.allocate(1)
    with pytest.raises(IndexError, match="of 1 blocks none is empty"):
        pool.allocate(1)


def test_a_block_is_not_freed_twice() -> None:
    pool = BlockPool(2)
    block_id = pool.allocate(1)
    pool.release([block_id], 1)
    with pytest.raises(ValueError, match="already free"):
        pool.release([block_id], 1)
    assert pool.num_free == 2


def test_only_what_somebody_has_can_be_held_cached_or_forgotten() -> None:
    pool = BlockPool(1)
    with pytest.raises(ValueError, match="block 0 is empty"):
        pool.hold(0, 1)
    with pytest.raises(ValueError, match="block 0 is not held"):
        pool.cache(0)
    with pytest.raises(ValueError, match="block 0 is not cached"):
        pool.uncache(0)


@given(num_positions=st.integers(0, 100), block_size=st.integers(1, 17))
def test_as_many_blocks_as_hold_the_positions(num_positions: int, block_size: int) -> None:
    num_blocks = num_blocks_for(num_positions, block_size)
    assert num_blocks * block_size >= num_positions
    assert num_blocks == 0 or (num_blocks - 1) * block_size < num_positions


@given(block_size=st.integers(1, 5), blocks=st.lists(st.integers(0, 50), unique=True, max_size=8), data=st.data())
def test_a_slot_is_the_block_times_its_size_and_the_offset(
    block_size: int, blocks: list[int], data: st.DataObject
) -> None:
    table = BlockTable(block_size)
    for block_id in blocks:
        table.append(block_id)
    end = len(blocks) * block_size
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    expected = [blocks[p // block_size] * block_size + p % block_size for p in range(start, stop)]
    assert table.slots(start, stop) == expected


@given(block_size=st.integers(1, 5), num_blocks=st.integers(0, 8), positions=st.lists(st.integers(-3, 50), max_size=6))
def test_only_blocks_wholly_before_a_position_are_released_and_each_once(
    block_size: int, num_blocks: int, positions: list[int]
) -> None:
    table = BlockTable(block_size)
    for block_id in range(100, 100 + num_blocks):
        table.append(block_id)
    released: list[int] = []
    for position in positions:
        released += table.release_before(position)
    num_released = min(max([0, *positions]) // block_size, num_blocks)
    assert released == list(range(100, 100 + num_released))
    assert table.ids().tolist() == [0] * num_released + list(range(100 + num_released, 100 + num_blocks))
    assert table.num_held == num_blocks - num_released
    assert released + table.release_all() == list(range(100, 100 + num_blocks))
    assert table.num_blocks == 0


def test_a_released_position_has_no_slot() -> None:
    table = BlockTable(4)
    for block_id in (7, 8, 9):
        table.append(block_id)
    table.release_before(5)
    assert table.slots(4, 6) == [32, 33]
    with pytest.raises(IndexError, match=r"\[3, 5\) are not all held; \[4, 12\) are"):
        table.slots(3, 5)
    with pytest.raises(IndexError):
        table.slots(8, 13)


def test_a_table_that_begins_late_takes_no_block_for_what_is_before() -> None:
    table = BlockTable(4)
    table.skip_before(11)
    table.append(5)
    assert table.ids().tolist() == [0, 0, 5]
    assert (table.num_blocks, table.num_held) == (3, 1)
    assert table.slots(8, 10) == [20, 21]
    assert table.release_all() == [5]


def test_only_an_empty_table_can_begin_late() -> None:
    table = BlockTable(4)
    table.append(1)
    with pytest.raises(ValueError, match="begin late"):
        table.skip_before(4)


def test_an_entry_can_be_given_another_block_unless_it_was_released() -> None:
    table = BlockTable(4)
    for block_id in (7, 8):
        table.append(block_id)
    table.replace(1, 5)
    assert table.slots(4, 6) == [20, 21]
    table.release_before(4)
    assert [table.holds(index) for index in range(3)] == [False, True, False]
    with pytest.raises(IndexError, match="entry 0 has no block"):
        table.replace(0, 3)
