"""The outbox of one gateway: events wait and coalesce until they are taken."""

import asyncio

import pytest

from gemline.decode.streams import GatewayStream
from gemline.engine.events import FailureEvent, FinishReason, Logprobs, TokenEvent
from gemline.errors import StaleEpoch
from gemline.internal.v1.decode_pb2 import Event
from gemline.internal.v1.sampling_pb2 import FINISH_REASON_LENGTH


def token(token_id: int, finish: FinishReason | None = None) -> TokenEvent:
    return TokenEvent(seq_id=1, token_id=token_id, logprobs=Logprobs((token_id, 9), (-0.5, -1.0)), finish=finish)


async def test_steps_that_were_not_taken_become_one_message() -> None:
    stream = GatewayStream("g")
    for step in range(3):
        stream.add_token(1, token(10 + step))
        stream.add_token(2, token(20 + step))
        stream.flush(num_running=2, num_waiting=step)

    message = (await stream.take()).step

    assert [(event.handle, list(event.token_ids)) for event in message.events] == [(1, [10, 11, 12]), (2, [20, 21, 22])]
    assert [item.token_ids[0] for item in message.events[0].logprobs] == [10, 11, 12]
    assert (message.num_running, message.num_waiting) == (2, 2)


async def test_nothing_is_taken_twice() -> None:
    stream = GatewayStream("g")
    stream.add_token(1, token(10))
    stream.flush(1, 0)
    await stream.take()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.take(), 0.01)


async def test_an_end_and_an_error_travel_with_what_came_before_them() -> None:
    stream = GatewayStream("g")
    stream.add_token(1, token(10))
    stream.add_token(1, token(11, FinishReason.LENGTH))
    stream.add_token(2, token(20))
    stream.add_failure(2, FailureEvent(2, "internal_error", "no"))
    stream.flush(0, 0)

    ended, failed = (await stream.take()).step.events

    assert (list(ended.token_ids), ended.finish_reason) == ([10, 11], FINISH_REASON_LENGTH)
    assert (list(failed.token_ids), failed.error.code) == ([20], "internal_error")


async def test_what_waits_for_a_cancelled_request_is_dropped() -> None:
    stream = GatewayStream("g")
    stream.add_token(1, token(10))
    stream.add_token(2, token(20))
    stream.flush(2, 0)
    stream.discard(1)

    message = (await stream.take()).step

    assert [event.handle for event in message.events] == [2]


async def test_a_closed_stream_gives_its_error_and_nothing_else() -> None:
    stream = GatewayStream("g")
    stream.add_token(1, token(10))
    stream.close(StaleEpoch("over"))

    with pytest.raises(StaleEpoch):
        await stream.take()


async def test_an_event_without_log_probabilities_has_none() -> None:
    stream = GatewayStream("g")
    stream.add_token(1, TokenEvent(seq_id=1, token_id=10))
    stream.flush(1, 0)

    assert (await stream.take()).step.events == [Event(handle=1, token_ids=[10])]
