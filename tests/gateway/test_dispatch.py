"""Which requests a refusal sends to the next worker, at once or not at all."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.dispatching import a_ground, attach, begin, holder, other, refusal, submit_of
from support.eventually import eventually
from support.hand_worker import CARD, HandWorker, MakeWorker, tokens

from gemline.cluster.records import State
from gemline.errors import InvalidRequest, Overloaded
from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.rpc.options import open_channel

Two = tuple[HandWorker, HandWorker]


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links("gateway-test", open_channel, connect_timeout_s=0.3)
    yield links
    await links.stop()


@pytest.fixture
async def two(links: Links, make_worker: MakeWorker) -> Two:
    two = await make_worker(), await make_worker()
    await attach(links, *two)
    return two


@pytest.mark.parametrize("code", ["unavailable", "overloaded"])
async def test_a_request_that_a_worker_refuses_goes_to_the_next(links: Links, two: Two, code: str) -> None:
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    taking = asyncio.create_task(dispatch.take())
    first = await holder(*two)
    second = other(first, two)
    first.step(refusal(await submit_of(first), code))
    submit = await submit_of(second)
    assert list(submit.token_ids) == [2, 5]
    second.step(tokens(submit.handle, [8]))
    assert (await taking).token_ids == [8]
    assert moves == [Reason.REFUSED]


async def test_when_all_refuse_the_last_refusal_is_told(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    taking = asyncio.create_task(dispatch.take())
    for code in ("unavailable", "overloaded"):
        worker = await holder(*two)
        worker.step(refusal(await submit_of(worker), code))
    with pytest.raises(Overloaded, match="it is overloaded"):
        await taking


async def test_a_request_that_has_begun_is_offered_again_to_workers_that_refused_it(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    first = await holder(*two)
    second = other(first, two)
    submit = await submit_of(first)
    first.step(tokens(submit.handle, [8]))
    await dispatch.take()
    taking = asyncio.create_task(dispatch.take())
    first.step(refusal(submit, "overloaded"))
    second.step(refusal(await submit_of(second), "overloaded"))
    worker = await holder(*two)
    again = await submit_of(worker)
    assert list(again.token_ids) == [2, 5, 8]
    worker.step(tokens(again.handle, [9]))
    assert (await taking).token_ids == [9]


async def test_a_request_that_comes_too_late_for_a_draining_worker_goes_to_the_next(links: Links, two: Two) -> None:
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    taking = asyncio.create_task(dispatch.take())
    first = await holder(*two)
    second = other(first, two)
    links.follow(
        [
            worker.record(f"decode-{i}", state=State.DRAINING if worker is first else State.READY)
            for i, worker in enumerate(two)
        ]
    )
    await first.stop()
    second.step(tokens((await submit_of(second)).handle, [8]))
    assert (await taking).token_ids == [8]
    assert moves == [Reason.DRAINED]


async def test_an_error_of_the_request_itself_is_not_tried_elsewhere(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    worker = await holder(*two)
    worker.step(refusal(await submit_of(worker), "invalid_request"))
    with pytest.raises(InvalidRequest):
        await dispatch.take()
    assert all(worker.submits.empty() for worker in two)


async def test_canceling_reaches_the_worker_that_has_the_request_now(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    taking = asyncio.create_task(dispatch.take())
    first = await holder(*two)
    second = other(first, two)
    first.step(refusal(await submit_of(first), "unavailable"))
    submit = await submit_of(second)
    dispatch.cancel()
    assert await asyncio.wait_for(second.cancels.get(), 10) == submit.handle
    assert first.cancels.empty()
    assert (await taking).token_ids == []


async def test_a_request_that_was_canceled_on_its_way_to_the_next_worker_is_canceled_there(
    links: Links, make_worker: MakeWorker
) -> None:
    first, late = await make_worker(), await make_worker()
    await attach(links, first)
    dispatch = await begin(a_ground(links))
    taking = asyncio.create_task(dispatch.take())
    # The second worker is known but not attached yet when the first one refuses.
    links.follow([first.record("decode-0"), late.record("decode-1")])
    first.step(refusal(await submit_of(first), "unavailable"))
    await eventually(lambda: links.can_serve(CARD))
    dispatch.cancel()
    assert (await asyncio.wait_for(taking, 10)).token_ids == []
    await asyncio.sleep(0.2)
    assert late.submits.qsize() == late.cancels.qsize()
