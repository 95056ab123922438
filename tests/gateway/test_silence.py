"""An engine that stands still behind a process that is well: found by what it owes, and left alone for a while."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.dispatching import a_ground, a_submit, attach, begin, holder, other, read, read_all, submit_of
from support.hand_worker import CARD, MakeWorker, tokens

from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.internal.v1 import sampling_pb2
from gemline.rpc.options import open_channel

LENGTH = sampling_pb2.FINISH_REASON_LENGTH
TIMEOUT_S = 0.4


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links("gateway-test", open_channel, connect_timeout_s=0.3, silence_timeout_s=TIMEOUT_S)
    yield links
    await links.stop()


async def test_a_worker_that_owes_tokens_and_makes_no_step_is_given_up(links: Links, make_worker: MakeWorker) -> None:
    two = await make_worker(), await make_worker()
    await attach(links, *two)
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    silent = await holder(*two)
    submit = await submit_of(silent)
    silent.step(tokens(submit.handle, [7]))
    assert await read(dispatch, 1) == [7]
    reading = asyncio.create_task(read_all(dispatch))
    again = await submit_of(other(silent, two))
    silent.step(tokens(submit.handle, [66]))  # too late: nobody hears it
    other(silent, two).step(tokens(again.handle, [8], LENGTH))
    assert (await reading)[0] == [8]
    assert moves == [Reason.STALLED]


async def test_it_gets_no_request_for_a_while(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    await attach(links, worker)
    inbox = (await links.submit(CARD, a_submit())).inbox
    worker.step(tokens((await submit_of(worker)).handle, [7]))
    assert (await inbox.take()).token_ids == [7]
    with pytest.raises(Exception, match="stood still"):
        await asyncio.wait_for(inbox.take(), 20)
    assert not links.can_serve(CARD)
    await asyncio.sleep(TIMEOUT_S / 4)
    assert not links.can_serve(CARD)
    assert len(worker.hellos) == 1


@pytest.mark.parametrize("steps", [False, True], ids=["in the queue", "beside others"])
async def test_whoever_only_waits_is_not_taken_away(links: Links, make_worker: MakeWorker, steps: bool) -> None:
    """In the queue nothing is owed; and a worker that steps, if only for others, says so."""
    worker = await make_worker()
    await attach(links, worker)
    inbox = (await links.submit(CARD, a_submit())).inbox
    handle = (await submit_of(worker)).handle
    if steps:
        worker.step(tokens(handle, [7]))
        assert (await inbox.take()).token_ids == [7]
    for _ in range(10):
        await asyncio.sleep(TIMEOUT_S / 4)
        if steps:
            worker.step(num_running=3, num_waiting=1)
    worker.step(tokens(handle, [8], LENGTH))
    assert (await asyncio.wait_for(inbox.take(), 20)).token_ids == [8]
