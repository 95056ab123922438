"""Which failures of a worker send a request to another one, and which do not."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.eventually import eventually
from support.hand_worker import CARD, HandWorker, MakeWorker, tokens

from gemline.cluster.records import State
from gemline.errors import InvalidRequest, Overloaded, WorkerLost
from gemline.gateway.dispatch import Dispatch
from gemline.gateway.links import Links
from gemline.internal.v1 import decode_pb2
from gemline.rpc.options import open_channel

Two = tuple[HandWorker, HandWorker]


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links("gateway-test", open_channel, connect_timeout_s=0.3)
    yield links
    await links.stop()


async def start(links: Links, *workers: HandWorker) -> Dispatch:
    links.follow([worker.record(f"decode-{i}") for i, worker in enumerate(workers)])
    await eventually(lambda: all(worker.hellos for worker in workers))
    await asyncio.sleep(0.05)
    dispatch = Dispatch(links, CARD, decode_pb2.Submit(request_id="req_1", token_ids=[2, 5], num_prompt_tokens=2))
    await dispatch.start()
    return dispatch


async def has(*workers: HandWorker) -> HandWorker:
    """The worker that got the request."""
    await eventually(lambda: any(not worker.submits.empty() for worker in workers))
    return next(worker for worker in workers if not worker.submits.empty())


def refusal(submit: decode_pb2.Submit, code: str) -> decode_pb2.Event:
    return decode_pb2.Event(handle=submit.handle, error=decode_pb2.Error(code=code, message=f"it is {code}"))


@pytest.fixture
async def two(make_worker: MakeWorker) -> Two:
    return await make_worker(), await make_worker()


@pytest.mark.parametrize("code", ["unavailable", "overloaded"])
async def test_a_request_that_a_worker_refuses_goes_to_the_next(links: Links, two: Two, code: str) -> None:
    dispatch = await start(links, *two)
    taking = asyncio.create_task(dispatch.take())
    first = await has(*two)
    second = two[1 - two.index(first)]
    first.step(refusal(first.submits.get_nowait(), code))
    submit = await asyncio.wait_for(second.submits.get(), 10)
    assert list(submit.token_ids) == [2, 5]
    second.step(tokens(submit.handle, [8]))
    assert (await taking).token_ids == [8]


async def test_when_all_refuse_the_last_refusal_is_told(links: Links, two: Two) -> None:
    dispatch = await start(links, *two)
    taking = asyncio.create_task(dispatch.take())
    for code in ("unavailable", "overloaded"):
        worker = await has(*two)
        worker.step(refusal(worker.submits.get_nowait(), code))
    with pytest.raises(Overloaded, match="it is overloaded"):
        await taking


async def test_a_request_that_has_begun_stays_where_it_is(links: Links, two: Two) -> None:
    dispatch = await start(links, *two)
    worker = await has(*two)
    submit = worker.submits.get_nowait()
    worker.step(tokens(submit.handle, [8]))
    await dispatch.take()
    worker.step(refusal(submit, "unavailable"))
    with pytest.raises(WorkerLost):
        await dispatch.take()
    assert all(worker.submits.empty() for worker in two)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_request_that_comes_too_late_for_a_draining_worker_goes_to_the_next_unless_it_has_begun(
    links: Links, two: Two, begun: bool
) -> None:
    dispatch = await start(links, *two)
    taking = asyncio.create_task(dispatch.take())
    first = await has(*two)
    second = two[1 - two.index(first)]
    if begun:
        first.step(tokens(first.submits.get_nowait().handle, [7]))
        assert (await taking).token_ids == [7]
        taking = asyncio.create_task(dispatch.take())
    states = [State.DRAINING if worker is first else State.READY for worker in two]
    links.follow(
        [worker.record(f"decode-{i}", state=state) for i, (worker, state) in enumerate(zip(two, states, strict=True))]
    )
    first.close_streams()
    if begun:
        with pytest.raises(WorkerLost, match="has left"):
            await taking
        assert second.submits.empty()
    else:
        submit = await asyncio.wait_for(second.submits.get(), 10)
        second.step(tokens(submit.handle, [8]))
        assert (await taking).token_ids == [8]


async def test_a_request_whose_worker_died_is_not_given_to_the_next(links: Links, two: Two) -> None:
    dispatch = await start(links, *two)
    worker = await has(*two)
    worker.submits.get_nowait()
    await worker.stop()
    with pytest.raises(WorkerLost):
        await dispatch.take()
    assert all(worker.submits.empty() for worker in two)


async def test_an_error_of_the_request_itself_is_not_tried_elsewhere(links: Links, two: Two) -> None:
    dispatch = await start(links, *two)
    worker = await has(*two)
    worker.step(refusal(worker.submits.get_nowait(), "invalid_request"))
    with pytest.raises(InvalidRequest):
        await dispatch.take()
    assert all(worker.submits.empty() for worker in two)


async def test_canceling_reaches_the_worker_that_has_the_request_now(links: Links, two: Two) -> None:
    dispatch = await start(links, *two)
    taking = asyncio.create_task(dispatch.take())
    first = await has(*two)
    second = two[1 - two.index(first)]
    first.step(refusal(first.submits.get_nowait(), "unavailable"))
    submit = await asyncio.wait_for(second.submits.get(), 10)
    dispatch.cancel()
    assert await asyncio.wait_for(second.cancels.get(), 10) == submit.handle
    assert first.cancels.empty()
    assert (await taking).token_ids == []


async def test_a_request_that_was_canceled_on_its_way_to_the_next_worker_is_canceled_there(
    links: Links, make_worker: MakeWorker
) -> None:
    first, late = await make_worker(), await make_worker()
    dispatch = await start(links, first)
    taking = asyncio.create_task(dispatch.take())
    # The second worker is known but not attached yet when the first one refuses.
    links.follow([first.record("decode-0"), late.record("decode-1")])
    first.step(refusal(await first.submits.get(), "unavailable"))
    await eventually(lambda: links.can_serve(CARD))
    dispatch.cancel()
    assert (await asyncio.wait_for(taking, 10)).token_ids == []
    await asyncio.sleep(0.2)
    assert late.submits.qsize() == late.cancels.qsize()
