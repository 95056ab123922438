"""A worker that stands still, in a process of its own, is given up in seconds and taken back when it goes on."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.dispatching import a_ground, attach, begin, submit_of
from support.eventually import eventually
from support.hand_worker import CARD, MakeWorker, tokens

from gemline.cluster.records import Role, WorkerRecord
from gemline.errors import WorkerLost
from gemline.gateway.links import Links
from gemline.gateway.moves import Reason
from gemline.internal.v1 import decode_pb2
from gemline.rpc.options import open_channel

# Answers every request with one token, and then says nothing more.
SCRIPT = """
import asyncio
from support.hand_worker import HandWorker, tokens

async def main():
    worker = HandWorker()
    await worker.start()
    print(worker.address, flush=True)
    while True:
        worker.step(tokens((await worker.submits.get()).handle, [5]))

asyncio.run(main())
"""


@pytest.fixture
async def worker() -> AsyncIterator[asyncio.subprocess.Process]:
    tests = str(Path(__file__).parents[1])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": tests}
    )
    yield process
    process.kill()
    await process.wait()


async def address_of(worker: asyncio.subprocess.Process) -> str:
    assert worker.stdout is not None
    return (await worker.stdout.readline()).decode().strip()


async def test_a_suspect_is_not_sent_to_a_worker_that_does_not_answer(
    worker: asyncio.subprocess.Process, make_worker: MakeWorker
) -> None:
    """Two that die or freeze at one time must not be laid to a request that was under one of them."""
    frozen = WorkerRecord("decode-1", Role.DECODE, await address_of(worker), CARD, epoch=1)
    dying, alive = await make_worker(), await make_worker()
    links = Links("gateway-test", open_channel, connect_timeout_s=1.0)
    ground = a_ground(links)
    try:
        await attach(links, dying)
        dispatch = await begin(ground)
        taking = asyncio.create_task(dispatch.take())
        await submit_of(dying)
        links.follow([dying.record("decode-0"), frozen])
        await eventually(lambda: len(links._open_links(CARD, ())) == 2)
        worker.send_signal(signal.SIGSTOP)
        await dying.stop()
        await asyncio.sleep(0.1)
        links.follow([frozen, alive.record("decode-2")])
        submit = await submit_of(alive)
        worker.send_signal(signal.SIGCONT)
        alive.step(tokens(submit.handle, [9]))
        assert (await taking).token_ids == [9]
    finally:
        await links.stop()


async def test_a_frozen_worker_is_given_up_and_taken_back(worker: asyncio.subprocess.Process) -> None:
    address = await address_of(worker)
    links = Links("gateway-test", open_channel, connect_timeout_s=1.0)
    links.follow([WorkerRecord("decode-1", Role.DECODE, address, CARD, epoch=1)])
    try:
        submit = decode_pb2.Submit(request_id="req_1", token_ids=[2], num_prompt_tokens=1)
        inbox = (await links.submit(CARD, submit)).inbox
        assert (await inbox.take()).token_ids == [5]
        worker.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        with pytest.raises(WorkerLost, match="stood still"):
            await asyncio.wait_for(inbox.take(), 60)
        print(f"given up after {time.monotonic() - stopped_s:.2f} s")
        assert inbox.broken_by is Reason.FROZEN
        assert not links.can_serve(CARD)
        worker.send_signal(signal.SIGCONT)
        await eventually(lambda: links.can_serve(CARD), timeout_s=60)
        assert (await (await links.submit(CARD, submit)).inbox.take()).token_ids == [5]
    finally:
        await links.stop()
