"""A worker that stands still, in a process of its own, is given up in seconds and taken back when it goes on."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.eventually import eventually
from support.hand_worker import CARD

from gemline.cluster.records import Role, WorkerRecord
from gemline.errors import WorkerLost
from gemline.gateway.links import Links
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


async def test_a_frozen_worker_is_given_up_and_taken_back(worker: asyncio.subprocess.Process) -> None:
    assert worker.stdout is not None
    address = (await worker.stdout.readline()).decode().strip()
    links = Links("gateway-test", open_channel, connect_timeout_s=1.0)
    links.follow([WorkerRecord("decode-1", Role.DECODE, address, CARD, epoch=1)])
    try:
        submit = decode_pb2.Submit(request_id="req_1", token_ids=[2], num_prompt_tokens=1)
        inbox = (await links.submit(CARD, submit)).inbox
        assert (await inbox.take()).token_ids == [5]
        worker.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(5):
            with pytest.raises(WorkerLost):
                await inbox.take()
        assert not links.can_serve(CARD)
        worker.send_signal(signal.SIGCONT)
        await eventually(lambda: links.can_serve(CARD), timeout_s=10)
        assert (await (await links.submit(CARD, submit)).inbox.take()).token_ids == [5]
    finally:
        await links.stop()
