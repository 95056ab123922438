"""A step's tokens reach their readers."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

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
    assert attached.on_step(step())
    assert not attached.on_step(step())
    assert (attached.num_pending_tokens, attached.num_reported) == (0, NUM_STREAMS)
    attached.on_step(step(sampling_pb2.FINISH_REASON_LENGTH))
    assert attached.num_in_flight == 0
    for handle, inbox in enumerate(inboxes, start=1):
        delivery = await inbox.take()
        assert (delivery.token_ids, delivery.finish) == ([handle] * 3, FinishReason.LENGTH)


async def test_what_comes_for_a_canceled_request_is_dropped() -> None:
    attached = Attached()
    inboxes = [attached.submit(decode_pb2.Submit()) for _ in range(NUM_STREAMS)]
    inboxes[-1].cancel()
    attached.on_step(step())
    assert attached.num_in_flight == NUM_STREAMS - 1
    assert (await inboxes[-1].take()).token_ids == []
