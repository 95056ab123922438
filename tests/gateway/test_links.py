"""Streams to decode workers: who gets a request, what comes back, and what a broken stream means."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from support.eventually import eventually
from support.hand_worker import CARD, MakeWorker, tokens

from gemline.cluster.records import State
from gemline.engine.events import FinishReason
from gemline.errors import InternalError, Overloaded, StaleEpoch, Unavailable, WorkerLost
from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.rpc.options import open_channel

STOP = sampling_pb2.FINISH_REASON_STOP
LENGTH = sampling_pb2.FINISH_REASON_LENGTH
MORE = sampling_pb2.FINISH_REASON_UNSPECIFIED


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links("gateway-test", open_channel, connect_timeout_s=1.0, linger_s=0.2)
    yield links
    await links.stop()


def a_submit(request_id: str = "req_1") -> decode_pb2.Submit:
    return decode_pb2.Submit(request_id=request_id, token_ids=[2, 5], num_prompt_tokens=2)


async def test_tokens_arrive_in_order_and_the_last_delivery_says_why_it_ended(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    handle = (await worker.submits.get()).handle
    worker.step(tokens(handle, [10]))
    assert (await inbox.take()).token_ids == [10]
    worker.step(tokens(handle, [11]))
    worker.step(tokens(handle, [12], STOP))
    got: list[int] = []
    finish = None
    while finish is None:
        delivery = await inbox.take()
        got, finish = got + delivery.token_ids, delivery.finish
    assert (got, finish) == ([11, 12], FinishReason.STOP)


async def test_steps_that_come_while_nobody_reads_are_one_delivery(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    handle = (await worker.submits.get()).handle
    for token_id in range(50):
        worker.step(tokens(handle, [token_id], LENGTH if token_id == 49 else MORE))
    await asyncio.sleep(0.2)
    delivery = await inbox.take()
    assert (delivery.token_ids, delivery.finish) == (list(range(50)), FinishReason.LENGTH)


async def test_the_gateway_says_hello_with_its_name_and_the_epoch_it_means(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker(epoch=7)
    links.follow([worker.record()])
    await links.submit(CARD, a_submit())
    assert [(hello.gateway_id, hello.epoch) for hello in worker.hellos] == [("gateway-test", 7)]


async def test_requests_of_one_stream_have_handles_of_their_own(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inboxes = [(await links.submit(CARD, a_submit(f"req_{i}"))).inbox for i in range(3)]
    handles = [(await worker.submits.get()).handle for _ in inboxes]
    assert len(set(handles)) == 3
    worker.step(*(tokens(handle, [100 + i], STOP) for i, handle in enumerate(handles)))
    assert [(await inbox.take()).token_ids for inbox in inboxes] == [[100], [101], [102]]


async def test_a_request_goes_to_the_worker_with_the_least_load(links: Links, make_worker: MakeWorker) -> None:
    busy, idle = await make_worker(), await make_worker()
    links.follow([busy.record("a", num_running=5), idle.record("b", num_running=1)])
    await eventually(lambda: bool(busy.hellos and idle.hellos))
    await asyncio.sleep(0.05)
    await links.submit(CARD, a_submit())
    assert (busy.submits.qsize(), (await idle.submits.get()).request_id) == (0, "req_1")


async def test_a_burst_spreads_over_the_workers_before_any_of_them_reports(
    links: Links, make_worker: MakeWorker
) -> None:
    workers = [await make_worker(), await make_worker()]
    links.follow([worker.record(f"w{i}") for i, worker in enumerate(workers)])
    await links.submit(CARD, a_submit())
    await eventually(lambda: all(worker.hellos for worker in workers))
    await asyncio.sleep(0.05)
    for i in range(9):
        await links.submit(CARD, a_submit(f"req_{i}"))
    await asyncio.sleep(0.1)
    assert [worker.submits.qsize() for worker in workers] == [5, 5]


async def test_requests_of_one_key_go_to_one_of_equal_workers(links: Links, make_worker: MakeWorker) -> None:
    workers = [await make_worker() for _ in range(3)]
    links.follow([worker.record(f"w{i}") for i, worker in enumerate(workers)])
    first = await links.submit(CARD, a_submit("req_first"), spread_by="acme shop")
    await eventually(lambda: all(worker.hellos for worker in workers))
    await asyncio.sleep(0.05)
    first.inbox.cancel()
    found = set()
    for number in range(8):  # each when the one before has ended: all workers are equal
        await eventually(lambda: not any(link.num_in_flight for link in links._links.values()))
        place = await links.submit(CARD, a_submit(f"req_{number}"), spread_by="acme shop")
        found.add(place.worker_id)
        place.inbox.cancel()
    assert len(found) == 1


async def test_a_canceled_request_is_canceled_at_once_and_its_late_tokens_are_dropped(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    handle = (await worker.submits.get()).handle
    inbox.cancel()
    assert (await inbox.take()).token_ids == []
    assert await asyncio.wait_for(worker.cancels.get(), 10) == handle
    worker.step(tokens(handle, [1]))
    await asyncio.sleep(0.05)
    assert worker.cancels.empty()


async def test_a_request_that_has_ended_is_not_canceled(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    worker.step(tokens((await worker.submits.get()).handle, [1], STOP))
    await inbox.take()
    inbox.cancel()
    await asyncio.sleep(0.05)
    assert worker.cancels.empty()


async def test_an_error_of_one_request_reaches_its_reader_after_its_tokens_and_nobody_else(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    failing, healthy = [(await links.submit(CARD, a_submit(f"req_{i}"))).inbox for i in range(2)]
    first, second = (await worker.submits.get()).handle, (await worker.submits.get()).handle
    error = decode_pb2.Error(code="overloaded", message="the queue is full")
    worker.step(decode_pb2.Event(handle=first, token_ids=[4], error=error), tokens(second, [9], STOP))
    assert (await failing.take()).token_ids == [4]
    with pytest.raises(Overloaded, match="the queue is full"):
        await failing.take()
    assert (await healthy.take()).token_ids == [9]


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        ("stop", Reason.LOST, WorkerLost),
        ("close in order", Reason.DRAINED, Unavailable),
        ("close with a word", Reason.DRAINED, Unavailable),
        ("lose the lease", Reason.DRAINED, Unavailable),
        ("fail", Reason.LOST, WorkerLost),
    ],
)
async def test_a_broken_stream_fails_its_requests_after_what_they_had_and_says_why(
    links: Links, make_worker: MakeWorker, end: str, reason: Reason, error: type[Unavailable]
) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    with_tokens, without = [(await links.submit(CARD, a_submit(f"req_{i}"))).inbox for i in range(2)]
    handle = (await worker.submits.get()).handle
    worker.step(tokens(handle, [3]))
    await asyncio.sleep(0.1)
    if end == "stop":
        await worker.stop()
    else:
        words = {
            "close with a word": Unavailable("the worker is shutting down"),
            "lose the lease": StaleEpoch("the worker's lease is over"),
            "fail": InternalError("a bug"),
        }
        worker.close_streams(words.get(end))
    with pytest.raises(error):
        await asyncio.wait_for(without.take(), 10)
    assert (await with_tokens.take()).token_ids == [3]
    with pytest.raises(error):
        await with_tokens.take()
    assert without.broken_by is with_tokens.broken_by is reason


async def test_a_draining_worker_whose_stream_breaks_has_left(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    links.follow([worker.record(state=State.DRAINING)])
    await worker.stop()
    with pytest.raises(Unavailable, match="has left"):
        await asyncio.wait_for(inbox.take(), 10)
    assert inbox.broken_by is Reason.DRAINED


async def test_a_stream_that_broke_is_opened_again(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    await links.submit(CARD, a_submit("req_1"))
    await worker.submits.get()
    worker.close_streams()
    await eventually(lambda: not links.can_serve(CARD))
    inbox = (await links.submit(CARD, a_submit("req_2"))).inbox
    assert len(worker.hellos) == 2
    worker.step(tokens((await worker.submits.get()).handle, [8], STOP))
    assert (await inbox.take()).token_ids == [8]


async def test_a_stream_whose_channel_was_closed_under_it_is_opened_again(make_worker: MakeWorker) -> None:
    opened: list[grpc.aio.Channel] = []

    def open_and_keep(address: str) -> grpc.aio.Channel:
        opened.append(open_channel(address))
        return opened[-1]

    worker = await make_worker()
    links = Links("gateway-test", open_and_keep, connect_timeout_s=1.0)
    links.follow([worker.record()])
    try:
        inbox = (await links.submit(CARD, a_submit("req_1"))).inbox
        await opened[0].close()
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(inbox.take(), 10)
        assert await links.submit(CARD, a_submit("req_2"))
    finally:
        await links.stop()


async def test_a_worker_that_stays_away_from_the_snapshot_loses_its_requests(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    links.follow([])
    with pytest.raises(Unavailable, match="no decode worker"):
        await links.submit(CARD, a_submit())
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(inbox.take(), 10)


async def test_a_worker_that_comes_back_under_a_new_epoch_keeps_its_requests(
    links: Links, make_worker: MakeWorker
) -> None:
    worker = await make_worker(epoch=1)
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit("req_1"))).inbox
    handle = (await worker.submits.get()).handle
    links.follow([])
    worker.epoch = 2
    links.follow([worker.record()])
    await asyncio.sleep(0.4)
    worker.step(tokens(handle, [8], STOP))
    assert (await inbox.take()).token_ids == [8]
    await links.submit(CARD, a_submit("req_2"))
    assert [hello.epoch for hello in worker.hellos] == [1, 2]


async def test_a_draining_worker_keeps_its_requests_and_gets_no_more(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker()
    links.follow([worker.record()])
    inbox = (await links.submit(CARD, a_submit())).inbox
    links.follow([worker.record(state=State.DRAINING)])
    with pytest.raises(Unavailable):
        await links.submit(CARD, a_submit("req_2"))
    worker.step(tokens((await worker.submits.get()).handle, [8], STOP))
    assert (await inbox.take()).token_ids == [8]


async def test_a_worker_of_another_epoch_gets_no_request(links: Links, make_worker: MakeWorker) -> None:
    worker = await make_worker(epoch=2)
    links.follow([worker.record(epoch=1)])
    with pytest.raises(Unavailable):
        await links.submit(CARD, a_submit())
    assert worker.submits.empty()


async def test_without_any_worker_a_request_is_refused_at_once(links: Links) -> None:
    async with asyncio.timeout(0.2):
        with pytest.raises(Unavailable):
            await links.submit(CARD, a_submit())
