"""What `gemline up` does with its parts; tests/e2e/test_up.py has the whole command."""

import asyncio

from gemline.cli.up import _first


async def test_the_stop_signal_ends_what_is_waited_for() -> None:
    stopped = asyncio.Event()
    asking = asyncio.create_task(asyncio.sleep(60))
    waiting = asyncio.create_task(_first(asking, stopped))
    await asyncio.sleep(0)
    stopped.set()
    await asyncio.wait_for(waiting, 5)
    assert asking.cancelled()
