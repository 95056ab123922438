"""Block pools and tables: nothing is given twice, nothing is lost, a position's slot never moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.blocks import BlockPool, BlockTable, num_blocks_for


@given(num_blocks=st.integers(0, 20), actions=st.lists(st.integers(-1, 19), max_size=60))
def test_a_block_has_one_owner_at_a_time(num_blocks: int, actions: list[int]) -> None:
    pool, taken = BlockPool(num_blocks), set[int]()
    for action in actions:
        if action < 0 and pool.num_free:
            block_id = pool.allocate()
            assert block_id not in taken and 0 <= block_id < num_blocks
            taken.add(block_id)
        elif action in taken:
            pool.free([action])
            taken.remove(action)
        assert pool.num_free == num_blocks - len(taken)


def test_an_empty_pool_gives_nothing() -> None:
    pool = BlockPool(1)
    pool.allocate()
    with pytest.raises(IndexError, match="all 1 blocks are taken"):
        pool.allocate()


def test_a_block_is_not_freed_twice() -> None:
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.free([block_id])
    with pytest.raises(ValueError, match="already free"):
        pool.free([block_id])
    assert pool.num_free == 2


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
