"""A piece of memory in equal slots, and which of them are free. Event loop only."""

import asyncio
import mmap
from collections.abc import Callable
from contextlib import suppress

from gemline.transfer.frames import TransferError

_RETRY_S = 0.05


class Slots:
    """Who takes a slot has it until it is given back; whoever finds none waits. The one given back last goes first:
    what was never taken costs no memory.
    """

    def __init__(self, memory: mmap.mmap, num_slots: int, slot_bytes: int) -> None:
        self._memory = memory
        whole = memoryview(memory)
        self._views = [whole[n * slot_bytes : (n + 1) * slot_bytes] for n in range(num_slots)]
        whole.release()
        self._free = list(range(num_slots - 1, -1, -1))
        self._changed = asyncio.Event()
        self._error: TransferError | None = None
        self._is_closed = False
        self.before_close: Callable[[], None] | None = None

    @classmethod
    def private(cls, num_slots: int, slot_bytes: int) -> "Slots":
        """Slots of this process alone."""
        return cls(mmap.mmap(-1, num_slots * slot_bytes), num_slots, slot_bytes)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, slot: int) -> memoryview:
        """The memory of a slot."""
        return self._views[slot]

    def take_nowait(self) -> int | None:
        """A free slot, None when there is none. Raises what `fail` was called with."""
        if self._error is not None:
            raise self._error
        return self._free.pop() if self._free else None

    async def take(self) -> int:
        """A free slot, as soon as there is one. Raises what `fail` was called with."""
        while (slot := self.take_nowait()) is None:
            self._changed.clear()
            await self._changed.wait()
        return slot

    def claim(self, slot: int) -> None:
        """Takes just that one. Raises TransferError when it is not free, or not there."""
        if slot not in self._free:
            raise TransferError(f"slot {slot} of {len(self._views)} was named, which is not free")
        self._free.remove(slot)

    def give(self, slot: int) -> None:
        """Gives a slot back."""
        self._free.append(slot)
        self._changed.set()

    def fail(self, error: TransferError) -> None:
        """No slot will be given back any more."""
        self._error = self._error or error
        self._changed.set()

    def close(self) -> None:
        """Lets go of the memory: now, or soon after the last thread that still copies from or to it."""
        self.fail(TransferError("the transfer is over"))
        if self.before_close is not None and not self._is_closed:
            self.before_close()
        self._is_closed = True
        self._let_go()

    def _let_go(self) -> None:
        for view in self._views:
            with suppress(BufferError):
                view.release()
        try:
            self._memory.close()
        except BufferError:  # not while anybody is in it
            asyncio.get_running_loop().call_later(_RETRY_S, self._let_go)
