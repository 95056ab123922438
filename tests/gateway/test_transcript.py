"""However often a request changes its worker, and however much was unread then: every token once, in order."""

import asyncio
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from support.dispatching import STOP_ID, a_submit

from gemline.engine.events import FinishReason
from gemline.errors import WorkerLost
from gemline.gateway.inbox import Delivery, Inbox
from gemline.gateway.moves import Reason
from gemline.gateway.transcript import Transcript
from gemline.internal.v1 import decode_pb2, sampling_pb2

NO_LOGPROBS: list[sampling_pb2.Logprobs] = []


def generated(submit: decode_pb2.Submit) -> list[int]:
    """All that a worker gives for it: tokens depend on the seed and the position alone, as real ones' do."""
    ids = []
    for position in range(len(submit.token_ids), submit.num_prompt_tokens + submit.sampling.max_tokens):
        ids.append((submit.sampling.seed * 31 + position * position) % 120)
        if ids[-1] == STOP_ID:
            break
    return ids


@given(
    seed=st.integers(0, 2**32),
    max_tokens=st.integers(1, 30),
    lives=st.lists(st.lists(st.integers(1, 4), max_size=5), max_size=6),
    reads=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_the_answer_is_that_of_a_worker_that_lived(
    seed: int, max_tokens: int, lives: Sequence[Sequence[int]], reads: list[bool]
) -> None:
    """`lives`: for each worker the sizes of the steps it made before it died; `reads`: whether the reader came."""
    submit = a_submit(max_tokens=max_tokens)
    submit.sampling.seed = seed
    oracle = generated(submit)
    got, finish = asyncio.run(read_through(Transcript(submit), [*lives, [30]], iter(reads * 4)))
    assert got == oracle
    assert finish is (FinishReason.STOP if oracle[-1] == STOP_ID else FinishReason.LENGTH)


async def read_through(
    transcript: Transcript, lives: Sequence[Sequence[int]], reads: Iterator[bool]
) -> tuple[list[int], FinishReason | None]:
    got: list[int] = []
    for sizes in lives:
        inbox = Inbox(lambda: None)
        ids = generated(transcript.submit)
        for size in sizes:
            step, ids = ids[:size], ids[size:]
            inbox.deliver(decode_pb2.Event(token_ids=step))  # the word that it was the last is always lost
            if next(reads) and not inbox.is_open:
                delivery = transcript.note(await inbox.take())
                got += delivery.token_ids
                if delivery.finish:
                    return got, delivery.finish
        inbox.fail(Reason.LOST)
        try:
            delivery = transcript.note(await inbox.take())
        except WorkerLost:
            continue
        got += delivery.token_ids
        if delivery.finish:
            return got, delivery.finish
    raise AssertionError("the last worker lives long enough")


def test_a_finish_that_the_worker_says_is_kept() -> None:
    transcript = Transcript(a_submit(max_tokens=9))
    assert transcript.note(Delivery([7], NO_LOGPROBS, FinishReason.STOP)).finish is FinishReason.STOP
    assert transcript.num_delivered == 1
