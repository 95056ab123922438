"""A request whose worker dies, freezes or drains goes on at another: no token is lost, and none comes twice."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from support.dispatching import (
    STOP_ID,
    a_ground,
    a_submit,
    attach,
    begin,
    holder,
    other,
    read,
    read_all,
    refusal,
    submit_of,
)
from support.eventually import eventually
from support.hand_worker import CARD, HandWorker, MakeWorker, tokens

from gemline.engine.events import FinishReason
from gemline.errors import Unavailable, WorkerLost
from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.rpc.options import open_channel

LENGTH = sampling_pb2.FINISH_REASON_LENGTH
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


@pytest.mark.parametrize("begun", [[], [7], [7, 8, 9]])
async def test_the_next_worker_gets_the_prompt_and_every_token_so_far(links: Links, two: Two, begun: list[int]) -> None:
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    first = await holder(*two)
    second = other(first, two)
    submit = await submit_of(first)
    for token_id in begun:
        first.step(tokens(submit.handle, [token_id]))
    got = await read(dispatch, len(begun))
    reading = asyncio.create_task(read_all(dispatch))
    await first.stop()
    again = await submit_of(second)
    assert (list(again.token_ids), again.num_prompt_tokens) == ([2, 5, *begun], 2)
    assert (again.sampling, again.cache_salt, again.request_id) == (submit.sampling, b"acme", "req_1")
    second.step(tokens(again.handle, [20]))
    second.step(tokens(again.handle, [21], LENGTH))
    rest, finish = await reading
    assert (got + rest, finish) == ([*begun, 20, 21], FinishReason.LENGTH)
    assert moves == [Reason.LOST]


async def test_tokens_that_were_not_read_when_the_worker_died_count_as_delivered(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    first = await holder(*two)
    second = other(first, two)
    first.step(tokens((await submit_of(first)).handle, [7, 8]))
    await asyncio.sleep(0.1)
    await first.stop()
    await asyncio.sleep(0.1)
    assert (await dispatch.take()).token_ids == [7, 8]
    reading = asyncio.create_task(read_all(dispatch))
    again = await submit_of(second)
    assert list(again.token_ids) == [2, 5, 7, 8]
    second.step(tokens(again.handle, [9], LENGTH))
    assert await reading == ([9], FinishReason.LENGTH)


async def test_log_probabilities_go_on_with_the_tokens(links: Links, two: Two) -> None:
    def told(handle: int, token_id: int) -> decode_pb2.Event:
        logprobs = [sampling_pb2.Logprobs(token_ids=[token_id], values=[-0.5])]
        return decode_pb2.Event(handle=handle, token_ids=[token_id], logprobs=logprobs)

    dispatch = await begin(a_ground(links))
    first = await holder(*two)
    second = other(first, two)
    first.step(told((await submit_of(first)).handle, 7))
    deliveries = [await dispatch.take()]
    taking = asyncio.create_task(dispatch.take())
    await first.stop()
    second.step(told((await submit_of(second)).handle, 8))
    deliveries.append(await taking)
    assert [(one.token_ids, [list(item.token_ids) for item in one.logprobs]) for one in deliveries] == [
        ([7], [[7]]),
        ([8], [[8]]),
    ]


@pytest.mark.parametrize(
    ("last", "finish"), [([7, 8, 9], FinishReason.LENGTH), ([7, STOP_ID], FinishReason.STOP)], ids=["length", "stop"]
)
async def test_a_request_that_has_got_all_ends_without_any_worker(
    links: Links, make_worker: MakeWorker, last: list[int], finish: FinishReason
) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links), a_submit(max_tokens=3))
    worker.step(tokens((await submit_of(worker)).handle, last))  # and the word that this was the end is lost
    await asyncio.sleep(0.1)
    await worker.stop()
    assert await read_all(dispatch) == (last, finish)


async def test_tokens_that_a_later_worker_finds_cached_are_not_counted(links: Links, two: Two) -> None:
    def cached(handle: int, token_id: int, num: int) -> decode_pb2.Event:
        return decode_pb2.Event(handle=handle, token_ids=[token_id], num_cached_tokens=num)

    dispatch = await begin(a_ground(links))
    first = await holder(*two)
    second = other(first, two)
    first.step(cached((await submit_of(first)).handle, 7, num=1))
    assert (await dispatch.take()).num_cached == 1
    taking = asyncio.create_task(dispatch.take())
    await first.stop()
    second.step(cached((await submit_of(second)).handle, 8, num=2))
    assert (await taking).num_cached == 0


async def test_a_worker_that_says_that_it_goes_is_no_loss(links: Links, two: Two) -> None:
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    reading = asyncio.create_task(read_all(dispatch))
    for _ in range(6):  # more than any request may lose
        worker = await holder(*two)
        await submit_of(worker)
        worker.close_streams(Unavailable("the worker is shutting down"))
    worker = await holder(*two)
    worker.step(tokens((await submit_of(worker)).handle, [7], LENGTH))
    assert await reading == ([7], FinishReason.LENGTH)
    assert moves == [Reason.DRAINED] * 6


async def test_a_worker_that_lost_the_request_and_lives_to_say_so_has_lost_it(links: Links, two: Two) -> None:
    """As when its device fails: then every request of it ends, whichever it was that broke it."""
    moves: list[Reason] = []
    dispatch = await begin(a_ground(links), moves=moves)
    first = await holder(*two)
    second = other(first, two)
    submit = await submit_of(first)
    first.step(tokens(submit.handle, [7]))
    assert await read(dispatch, 1) == [7]
    reading = asyncio.create_task(read_all(dispatch))
    first.step(refusal(submit, "worker_lost"))
    second.step(tokens((await submit_of(second)).handle, [8], LENGTH))
    assert (await reading)[0] == [8]
    assert moves == [Reason.LOST]


async def test_a_canceled_request_is_not_sent_again(links: Links, two: Two) -> None:
    dispatch = await begin(a_ground(links))
    first = await holder(*two)
    second = other(first, two)
    first.step(tokens((await submit_of(first)).handle, [7]))
    await dispatch.take()
    dispatch.cancel()
    await first.stop()
    assert (await asyncio.wait_for(dispatch.take(), 10)).token_ids == []
    await asyncio.sleep(0.1)
    assert second.submits.empty()


async def test_a_reader_that_waits_for_another_worker_is_released_by_canceling(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links, resume_timeout_s=600))
    await submit_of(worker)
    taking = asyncio.create_task(dispatch.take())
    await worker.stop()
    await eventually(lambda: not links.can_serve(CARD))
    await asyncio.sleep(0.1)
    dispatch.cancel()
    dispatch.cancel()
    assert (await asyncio.wait_for(taking, 10)).token_ids == []


async def test_the_same_worker_may_come_back_in_time(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links, resume_timeout_s=60))
    worker.step(tokens((await submit_of(worker)).handle, [7]))
    assert await read(dispatch, 1) == [7]
    reading = asyncio.create_task(read_all(dispatch))
    await worker.stop()
    links.follow([])
    await asyncio.sleep(0.5)
    back = await make_worker(epoch=2)
    links.follow([back.record("decode-0")])
    again = await submit_of(back)
    assert list(again.token_ids) == [2, 5, 7]
    back.step(tokens(again.handle, [8], LENGTH))
    assert await reading == ([8], FinishReason.LENGTH)


async def test_a_worker_that_lost_only_its_stream_gets_the_request_again(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links, resume_timeout_s=60))
    await submit_of(worker)
    reading = asyncio.create_task(read_all(dispatch))
    worker.close_streams()
    worker.step(tokens((await submit_of(worker)).handle, [8], LENGTH))
    assert await reading == ([8], FinishReason.LENGTH)


@pytest.mark.parametrize("begun", [False, True])
async def test_when_nobody_takes_it_in_time_the_error_says_so(
    links: Links, make_worker: MakeWorker, begun: bool
) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links, resume_timeout_s=0.3))
    submit = await submit_of(worker)
    if begun:
        worker.step(tokens(submit.handle, [7]))
        await read(dispatch, 1)
    started_s = time.monotonic()
    await worker.stop()
    with pytest.raises(WorkerLost, match=r"was lost, and no other could take it within 0\.3 s"):
        await asyncio.wait_for(dispatch.take(), 60)
    assert time.monotonic() - started_s >= 0.3


async def test_a_gateway_that_stops_waits_for_nobody(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(a_ground(links, resume_timeout_s=600))
    await submit_of(worker)
    await links.stop()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(dispatch.take(), 10)
