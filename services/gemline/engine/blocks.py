"""Blocks of the KV pools: who holds which. Knows block numbers and positions, not what is stored there."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple


class BlockCounts(NamedTuple):
    """A number of blocks of each pool."""

    num_global: int
    num_local: int


def num_blocks_for(num_positions: int, block_size: int) -> int:
    """Blocks that hold the positions [0, num_positions)."""
    return -(-num_positions // block_size)


class BlockPool:
    """The blocks of one pool. Each is empty, or held by one or more holders, or idle: held by nobody, but cached.

    Empty and idle blocks are both counted as free. A block emptied last is given out first: its memory is likeliest
    still in a cache. A holder is any positive number; the pool counts how many blocks each of them holds alone.
    """

    __slots__ = ("_empty", "_holders", "_is_cached", "_num_alone", "_num_holders", "num_blocks", "num_idle")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_idle = 0
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._num_holders = array("q", bytes(8 * num_blocks))
        self._holders = array("q", bytes(8 * num_blocks))  # XORed: the number of a block's only holder
        self._is_cached = bytearray(num_blocks)
        self._num_alone: dict[int, int] = {}

    @property
    def num_empty(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._empty)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + self.num_idle

    def num_alone(self, holder: int) -> int:
        """Blocks that this holder shares with nobody: they are free when it releases them."""
        return self._num_alone.get(holder, 0)

    def is_held(self, block_id: int) -> bool:
        """Whether anybody holds it."""
        return self._num_holders[block_id] > 0

    def allocate(self, holder: int) -> int:
        """An empty block, held from now on. Raises IndexError when there is none."""
        if not self._empty:
            raise IndexError(f"of {self.num_blocks} blocks none is empty")
        block_id = self._empty.pop()
        self._num_holders[block_id] = 1
        self._holders[block_id] = holder
        self._count_alone(holder, 1)
        return block_id

    def hold(self, block_id: int, holder: int) -> None:
        """One more holder of a block that is held or idle."""
        num_holders = self._num_holders[block_id]
        if num_holders == 0:
            if not self._is_cached[block_id]:
                raise ValueError(f"block {block_id} is empty")
            self.num_idle -= 1
            self._count_alone(holder, 1)
        elif num_holders == 1:
            self._count_alone(self._holders[block_id], -1)
        self._num_holders[block_id] = num_holders + 1
        self._holders[block_id] ^= holder

    def release(self, block_ids: Iterable[int], holder: int) -> list[int]:
        """One holder less of each; returns those that are idle now. Raises ValueError on one that nobody holds."""
        idle: list[int] = []
        for block_id in block_ids:
            num_holders = self._num_holders[block_id] - 1
            if num_holders < 0:
                raise ValueError(f"block {block_id} is already free")
            self._num_holders[block_id] = num_holders
            self._holders[block_id] ^= holder
            if num_holders == 1:
                self._count_alone(self._holders[block_id], 1)
            elif num_holders == 0:
                self._count_alone(holder, -1)
                if self._is_cached[block_id]:
                    self.num_idle += 1
                    idle.append(block_id)
                else:
                    self._empty.append(block_id)
        return idle

    def cache(self, block_id: int) -> None:
        """Keeps what a held block holds: once nobody holds it, it is idle and not empty."""
        if not self._num_holders[block_id]:
            raise ValueError(f"block {block_id} is not held")
        self._is_cached[block_id] = 1

    def uncache(self, block_id: int) -> None:
        """Takes that back; an idle block is empty now."""
        if not self._is_cached[block_id]:
            raise ValueError(f"block {block_id} is not cached")
        self._is_cached[block_id] = 0
        if not self._num_holders[block_id]:
            self.num_idle -= 1
            self._empty.append(block_id)

    def _count_alone(self, holder: int, change: int) -> None:
        count = self._num_alone.get(holder, 0) + change
        if count:
            self._num_alone[holder] = count
        else:
            del self._num_alone[holder]


class BlockTable:
    """The blocks of one sequence in one pool: entry p holds the positions [p * block_size, (p + 1) * block_size).

    Entries are released from the front only, as a window leaves them; a released entry stays, as 0, so that a
    position's entry never moves. `num_changes` grows whenever an entry gets a block.
    """

    __slots__ = ("_block_ids", "_block_size", "_num_released", "num_changes")

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._block_ids = array("q")
        self._num_released = 0
        self.num_changes = 0

    @property
    def num_blocks(self) -> int:
        """Entries, the released ones too."""
        return len(self._block_ids)

    @property
    def num_held(self) -> int:
        """Entries that still own a block."""
        return len(self._block_ids) - self._num_released

    def ids(self) -> "array[int]":
        """The entries as signed 64-bit numbers, for the kernel to read; not to be kept or changed."""
        return self._block_ids

    def append(self, block_id: int) -> None:
        """The block for the next block_size positions."""
        self._block_ids.append(block_id)
        self.num_changes += 1

    def holds(self, index: int) -> bool:
        """Whether entry `index` has a block: it is there and not released."""
        return self._num_released <= index < len(self._block_ids)

    def replace(self, index: int, block_id: int) -> None:
        """Another block, of the same content, for the entry."""
        if not self.holds(index):
            raise IndexError(f"entry {index} has no block")
        self._block_ids[index] = block_id
        self.num_changes += 1

    def skip_before(self, position: int) -> None:
        """Goes on at the block of `position`: what is before will never be read, and takes no block.

        Raises ValueError while the table holds a block.
        """
        if self.num_held:
            raise ValueError(f"only a table that holds no block can begin late, this one holds {self.num_held}")
        self._num_released = max(self._num_released, position // self._block_size)
        self._block_ids.extend([0] * (self._num_released - len(self._block_ids)))

    def release_before(self, position: int) -> list[int]:
        """Gives up the blocks all of whose positions are before `position`; returns them."""
        stop = min(position // self._block_size, len(self._block_ids))
        freed = [self._block_ids[index] for index in range(self._num_released, stop)]
        for index in range(self._num_released, stop):
            self._block_ids[index] = 0
        self._num_released = max(self._num_released, stop)
        return freed

    def release_all(self) -> list[int]:
        """Gives up every block and forgets the entries; returns the blocks."""
        freed = self._block_ids[self._num_released :].tolist()
        self._block_ids = array("q")
        self._num_released = 0
        return freed

    def slots(self, start: int, stop: int) -> list[int]:
        """The slots of the positions [start, stop). Raises IndexError when one is not held."""
        size = self._block_size
        if start < self._num_released * size or stop > len(self._block_ids) * size:
            held = f"[{self._num_released * size}, {len(self._block_ids) * size})"
            raise IndexError(f"positions [{start}, {stop}) are not all held; {held} are")
        slots: list[int] = []
        while start < stop:
            first = self._block_ids[start // size] * size + start % size
            num_slots = min(size - start % size, stop - start)
            slots.extend(range(first, first + num_slots))
            start += num_slots
        return slots
