"""Memory in slots: nobody has a slot that another has, and none of it goes while somebody is in it."""

import asyncio
import mmap

import numpy as np
import pytest
from support.workers import becomes_true

from gemline.transfer.frames import TransferError
from gemline.transfer.slots import Slots

SIZE = 4096


async def test_whoever_finds_no_slot_gets_the_next_that_comes_back() -> None:
    slots = Slots.private(2, SIZE)
    taken = [await slots.take(), await slots.take()]
    assert slots.take_nowait() is None
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.give(taken[1])

    assert await waiting == taken[1]
    assert sorted(taken) == [0, 1]


async def test_whoever_waits_hears_that_none_will_come_back() -> None:
    slots = Slots.private(1, SIZE)
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.fail(TransferError("the receiver is gone"))
    slots.close()

    with pytest.raises(TransferError, match="the receiver is gone"):
        await waiting


async def test_the_slot_that_came_back_last_goes_first_so_unused_memory_is_never_touched() -> None:
    slots = Slots.private(8, SIZE)
    for _ in range(20):
        slot = slots.take_nowait()
        assert slot == 0
        slots.give(slot)


async def test_a_slot_is_claimed_once() -> None:
    slots = Slots.private(2, SIZE)
    slots.claim(1)
    for slot in (1, 2, 99):
        with pytest.raises(TransferError, match=f"slot {slot} of 2 was named"):
            slots.claim(slot)
    slots.give(1)
    slots.claim(1)


async def test_memory_that_a_thread_still_writes_to_stays_until_it_has_left() -> None:
    memory = mmap.mmap(-1, 2 * SIZE)
    slots = Slots(memory, 2, SIZE)
    payload = slots[0][:100]
    written = np.frombuffer(payload, dtype=np.uint8)

    slots.close()
    await asyncio.sleep(0.2)
    assert not memory.closed
    written[:] = 7
    del written
    payload.release()

    assert await becomes_true(lambda: memory.closed)


async def test_memory_nobody_uses_goes_at_once() -> None:
    memory = mmap.mmap(-1, SIZE)

    Slots(memory, 1, SIZE).close()

    assert memory.closed
