"""A step's tokens reach their readers, and nobody else waits for the last of them."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

import asyncio

from gemline.engine.events import FinishReason
from gemline.gateway.attached import Attached
from gemline.internal.v1 import decode_pb2, sampling_pb2

NUM_STREAMS = 32


def step(finish: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_UNSPECIFIED) -> decode_pb2.Step:
    events = [decode_pb2.Event(handle=handle, token_ids=[handle]) for handle in range(1, NUM_STREAMS + 1)]
    for event in events:
        event.finish_reason = finish
    return decode_pb2.Step(events=events, num_running=NUM_STREAMS)


async def test_every_reader_gets_its_own() -> None:
    attached = Attached()
    inboxes = [attached.submit(decode_pb2.Submit(token_ids=[7])) for _ in range(NUM_STREAMS)]
    assert attached.num_pending_tokens == NUM_STREAMS
    assert await attached.on_step(step())
    assert not await attached.on_step(step())
    assert (attached.num_pending_tokens, attached.num_reported) == (0, NUM_STREAMS)
    await attached.on_step(step(sampling_pb2.FINISH_REASON_LENGTH))
    assert attached.num_in_flight == 0
    for handle, inbox in enumerate(inboxes, start=1):
        delivery = await inbox.take()
        assert (delivery.token_ids, delivery.finish) == ([handle] * 3, FinishReason.LENGTH)


async def test_what_has_come_meanwhile_goes_before_the_last_tokens_of_a_step() -> None:
    attached, order = Attached(), list[str]()
    inboxes = [attached.submit(decode_pb2.Submit()) for _ in range(NUM_STREAMS)]

    async def read(name: str, number: int) -> None:
        await inboxes[number].take()
        order.append(name)
        asyncio.get_running_loop().call_soon(order.append, f"what came with the {name}")

    reading = [asyncio.create_task(read("first token", 0)), asyncio.create_task(read("last token", -1))]
    await asyncio.sleep(0)
    await attached.on_step(step())
    await asyncio.gather(*reading)
    assert order.index("what came with the first token") < order.index("last token")


async def test_a_request_that_is_canceled_within_a_step_gets_no_more_of_it() -> None:
    attached = Attached()
    inboxes = [attached.submit(decode_pb2.Submit()) for _ in range(NUM_STREAMS)]
    asyncio.get_running_loop().call_soon(inboxes[-1].cancel)
    await attached.on_step(step())
    assert attached.num_in_flight == NUM_STREAMS - 1
    assert (await inboxes[-1].take()).token_ids == []
