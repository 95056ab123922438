"""A request on workers that are driven by hand: how it is begun, who has it, and what its reader gets."""

import asyncio
from collections.abc import Sequence

from support.eventually import eventually
from support.hand_worker import CARD, HandWorker

from gemline.engine.events import FinishReason
from gemline.gateway.dispatch import Dispatch, Ground
from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.gateway.quarantine import Quarantine
from gemline.gateway.suspects import Suspects
from gemline.internal.v1 import decode_pb2, sampling_pb2

PROMPT = [2, 5]
STOP_ID = 107


def a_ground(links: Links, resume_timeout_s: float = 10.0) -> Ground:
    return Ground(links, Suspects(), Quarantine(300.0), resume_timeout_s)


def a_submit(request_id: str = "req_1", prompt: Sequence[int] = PROMPT, max_tokens: int = 100) -> decode_pb2.Submit:
    return decode_pb2.Submit(
        request_id=request_id,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=sampling_pb2.SamplingParams(max_tokens=max_tokens, seed=7, stop_token_ids=[STOP_ID]),
        cache_salt=b"acme",
    )


async def attach(links: Links, *workers: HandWorker) -> None:
    """The workers are decode-0, decode-1, ..., and take requests when this returns."""
    links.follow([worker.record(f"decode-{i}") for i, worker in enumerate(workers)])
    await eventually(lambda: all(worker.hellos for worker in workers))
    await eventually(lambda: links.can_serve(CARD))
    await asyncio.sleep(0.05)


async def begin(ground: Ground, submit: decode_pb2.Submit | None = None, moves: list[Reason] | None = None) -> Dispatch:
    heard: list[Reason] = [] if moves is None else moves
    dispatch = Dispatch(ground, CARD, submit or a_submit(), heard.append)
    await dispatch.start()
    return dispatch


async def holder(*workers: HandWorker) -> HandWorker:
    """The worker that got a request which the test has not looked at yet."""
    await eventually(lambda: any(not worker.submits.empty() for worker in workers))
    return next(worker for worker in workers if not worker.submits.empty())


def other(worker: HandWorker, two: Sequence[HandWorker]) -> HandWorker:
    return two[1 - two.index(worker)]


async def submit_of(worker: HandWorker) -> decode_pb2.Submit:
    """The next request that the worker gets."""
    return await asyncio.wait_for(worker.submits.get(), 20)


async def read(dispatch: Dispatch, num: int) -> list[int]:
    """The next ids, `num` at least."""
    ids: list[int] = []
    while len(ids) < num:
        ids += (await asyncio.wait_for(dispatch.take(), 20)).token_ids
    return ids


async def read_all(dispatch: Dispatch) -> tuple[list[int], FinishReason | None]:
    """Every id that is left, and why it ended."""
    ids: list[int] = []
    while True:
        delivery = await asyncio.wait_for(dispatch.take(), 20)
        ids += delivery.token_ids
        if delivery.finish is not None:
            return ids, delivery.finish


def refusal(submit: decode_pb2.Submit, code: str) -> decode_pb2.Event:
    return decode_pb2.Event(handle=submit.handle, error=decode_pb2.Error(code=code, message=f"it is {code}"))
