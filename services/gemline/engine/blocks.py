"""Blocks of the KV pools: who has which. Knows block numbers and positions, not what is stored there."""

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
    """The free blocks of one pool. A block freed last is given out first: its memory is likeliest still in a cache."""

    __slots__ = ("_free", "_taken", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._taken = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def allocate(self) -> int:
        """A block that is the caller's until freed. Raises IndexError when there is none."""
        if not self._free:
            raise IndexError(f"all {self.num_blocks} blocks are taken")
        block_id = self._free.pop()
        self._taken[block_id] = 1
        return block_id

    def free(self, block_ids: Iterable[int]) -> None:
        """Takes the blocks back. Raises ValueError on one that is not taken, and then keeps it as it was."""
        for block_id in block_ids:
            if not self._taken[block_id]:
                raise ValueError(f"block {block_id} is already free")
            self._taken[block_id] = 0
            self._free.append(block_id)


class BlockTable:
    """The blocks of one sequence in one pool: entry p holds the positions [p * block_size, (p + 1) * block_size).

    Entries are released from the front only, as a window leaves them; a released entry stays, as 0, so that a
    position's entry never moves.
    """

    __slots__ = ("_block_ids", "_block_size", "_num_released")

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._block_ids = array("q")
        self._num_released = 0

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

    def skip_before(self, position: int) -> None:
        """Begins an empty table at the block of `position`: what is before will never be read, and takes no block."""
        if self._block_ids:
            raise ValueError("only an empty table can begin late")
        self._num_released = position // self._block_size
        self._block_ids.extend([0] * self._num_released)

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
