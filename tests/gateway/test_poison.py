"""What a worker dies of is found out and refused; who was there by chance goes on."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from support.dispatching import a_ground, a_submit, attach, begin, holder, read_all, submit_of
from support.hand_worker import HandWorker, MakeWorker, tokens

from gemline.errors import PoisonRequest
from gemline.gateway.dispatch import Dispatch, Ground
from gemline.gateway.http.errors import error_response
from gemline.gateway.links import Links
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.rpc.options import open_channel

LENGTH = sampling_pb2.FINISH_REASON_LENGTH


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links("gateway-test", open_channel, connect_timeout_s=0.3)
    yield links
    await links.stop()


@pytest.fixture
async def ground(links: Links) -> Ground:
    return a_ground(links, resume_timeout_s=60)


@pytest.fixture
async def workers(links: Links, make_worker: MakeWorker) -> list[HandWorker]:
    workers = [await make_worker() for _ in range(3)]
    await attach(links, *workers)
    return workers


async def kill_holder(workers: Sequence[HandWorker]) -> decode_pb2.Submit:
    worker = await holder(*workers)
    submit = await submit_of(worker)
    await worker.stop()
    return submit


async def test_a_request_under_which_two_workers_died_is_given_up(
    ground: Ground, workers: Sequence[HandWorker]
) -> None:
    dispatch = await begin(ground)
    taking = asyncio.create_task(dispatch.take())
    await kill_holder(workers)
    await kill_holder(workers)
    with pytest.raises(PoisonRequest, match="2 workers were lost under this request"):
        await taking
    assert all(worker.submits.empty() for worker in workers)


async def test_its_prompt_is_refused_from_then_on_and_no_other(ground: Ground, workers: Sequence[HandWorker]) -> None:
    dispatch = await begin(ground, a_submit("req_1"))
    taking = asyncio.create_task(dispatch.take())
    await kill_holder(workers)
    await kill_holder(workers)
    await asyncio.gather(taking, return_exceptions=True)
    with pytest.raises(PoisonRequest, match="refused for another 300 s"):
        await begin(ground, a_submit("req_2"))
    assert await begin(ground, a_submit("req_3", prompt=[2, 6]))
    of_another_tenant = a_submit("req_4")
    of_another_tenant.cache_salt = b"umbrella"
    assert await begin(ground, of_another_tenant)


async def test_a_token_between_two_losses_clears_a_request(links: Links, make_worker: MakeWorker) -> None:
    ground = a_ground(links, resume_timeout_s=60)
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(ground)
    reading = asyncio.create_task(read_all(dispatch))
    for token_id in range(10, 13):
        worker.step(tokens((await submit_of(worker)).handle, [token_id]))
        worker = await replace(links, worker, make_worker)
    worker.step(tokens((await submit_of(worker)).handle, [13], LENGTH))
    assert (await reading)[0] == [10, 11, 12, 13]


async def test_five_losses_are_too_many_whatever_came_between(links: Links, make_worker: MakeWorker) -> None:
    ground = a_ground(links, resume_timeout_s=60)
    worker = await make_worker()
    await attach(links, worker)
    dispatch = await begin(ground)
    reading = asyncio.create_task(read_all(dispatch))
    for token_id in range(5):
        worker.step(tokens((await submit_of(worker)).handle, [token_id]))
        worker = await replace(links, worker, make_worker)
    with pytest.raises(PoisonRequest, match="5 workers"):
        await reading


@pytest.fixture
async def together(links: Links, ground: Ground, make_worker: MakeWorker) -> tuple[list[Dispatch], list[HandWorker]]:
    """Two requests on one worker that has just died, and two other workers."""
    dying, *others = [await make_worker() for _ in range(3)]
    await attach(links, dying)
    dispatches = [await begin(ground, a_submit(f"req_{i}", prompt=[2, i])) for i in range(2)]
    for _ in dispatches:
        await submit_of(dying)
    await dying.stop()
    return dispatches, others


async def test_suspects_are_tried_one_at_a_time(
    links: Links, together: tuple[list[Dispatch], list[HandWorker]]
) -> None:
    dispatches, (worker, _) = together
    links.follow([worker.record("decode-1")])
    taking = [asyncio.create_task(dispatch.take()) for dispatch in dispatches]
    first = await submit_of(worker)
    assert worker.submits.empty()
    worker.step(tokens(first.handle, [7]))
    await submit_of(worker)
    done, _ = await asyncio.wait(taking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert [(await task).token_ids for task in done] == [[7]]


async def test_who_only_shared_the_first_worker_goes_on_when_the_other_kills_the_second(
    links: Links, together: tuple[list[Dispatch], list[HandWorker]]
) -> None:
    dispatches, (second, third) = together
    links.follow([second.record("decode-1")])
    taking = {f"req_{i}": asyncio.create_task(dispatch.take()) for i, dispatch in enumerate(dispatches)}
    guilty = (await submit_of(second)).request_id
    await second.stop()
    links.follow([third.record("decode-2")])
    with pytest.raises(PoisonRequest):
        await asyncio.wait_for(taking.pop(guilty), 20)
    ((innocent, answer),) = taking.items()
    submit = await submit_of(third)
    assert submit.request_id == innocent
    third.step(tokens(submit.handle, [7]))
    assert (await answer).token_ids == [7]


async def test_suspects_that_had_to_go_together_are_not_convicted_together(
    links: Links, together: tuple[list[Dispatch], list[HandWorker]]
) -> None:
    dispatches, (second, third) = together
    links.follow([second.record("decode-1")])
    taking = [asyncio.create_task(dispatch.take()) for dispatch in dispatches]
    for _ in dispatches:
        await submit_of(second)  # the other one waits a while for the first to be cleared, and not for ever
    await second.stop()
    links.follow([third.record("decode-2")])
    for _ in dispatches:
        third.step(tokens((await submit_of(third)).handle, [7]))
    assert [(await asyncio.wait_for(task, 20)).token_ids for task in taking] == [[7], [7]]


def test_openais_clients_are_told_not_to_try_it_again() -> None:
    answer = error_response(PoisonRequest("workers were lost under it"))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")


async def replace(links: Links, worker: HandWorker, make_worker: MakeWorker) -> HandWorker:
    """The worker dies, and a new one comes."""
    await asyncio.sleep(0.05)
    await worker.stop()
    new = await make_worker(epoch=worker.epoch + 1)
    links.follow([new.record("decode-0")])
    return new
