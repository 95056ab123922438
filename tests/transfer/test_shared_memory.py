"""Shared memory: two processes see the same bytes, and nothing is left of it, however either of them ends."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from support.hand_transfer import calling, num_mappings, serving, two_ends
from support.transfer_child import ORDER
from support.workers import becomes_true

from gemline.errors import GemlineError
from gemline.transfer import shared_memory
from gemline.transfer.frames import TransferError
from gemline.transfer.transports import Transport

SIZE = 8 * 4096
BESIDE = [Transport.SHM, Transport.SOCKET]
by_both = pytest.mark.parametrize("transport", BESIDE, ids=lambda transport: transport.value)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(Path("/dev/shm").glob("*gemline*"))
    yield
    assert set(Path("/dev/shm").glob("*gemline*")) == before
    assert num_mappings() == 0


def test_what_one_writes_the_other_reads() -> None:
    memory, fd = shared_memory.create(SIZE)
    other = shared_memory.attach(fd, SIZE)
    os.close(fd)

    memory[100:105] = b"hello"

    assert other[100:105] == b"hello"
    other.close()
    memory.close()


def test_its_size_cannot_be_changed_under_who_maps_it() -> None:
    memory, fd = shared_memory.create(SIZE)
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)
    memory.close()


def test_memory_of_another_size_or_that_could_shrink_is_not_mapped() -> None:
    memory, fd = shared_memory.create(SIZE)
    with pytest.raises(TransferError, match=f"{SIZE} bytes of shared memory .* expected {2 * SIZE} sealed"):
        shared_memory.attach(fd, 2 * SIZE)
    os.close(fd)
    memory.close()
    unsealed = os.memfd_create("unsealed")
    os.ftruncate(unsealed, SIZE)
    with pytest.raises(TransferError, match="sealed"):
        shared_memory.attach(unsealed, SIZE)
    os.close(unsealed)


def test_a_file_that_is_no_memory_is_not_mapped(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(TransferError, match="cannot be mapped"):
        shared_memory.attach(file.fileno(), SIZE)


@asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    tests = Path(__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.transfer_child",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tests)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


@by_both
async def test_of_a_receiver_that_is_killed_the_sender_hears_at_once_and_keeps_nothing(transport: Transport) -> None:
    async with two_ends() as ends:
        there = ends.prefill.prefilled(ORDER.num_tokens)
        async with serving(ends, there, ORDER) as address, child("receive", address, transport.value) as receiver:
            assert await line_of(receiver) == "stuck"
            assert await becomes_true(lambda: ends.num_sent_bytes > 8192)
            assert num_mappings() == (1 if transport is Transport.SHM else 0)

            os.kill(receiver.pid, signal.SIGKILL)

            assert await becomes_true(lambda: num_mappings() == 0 and not ends.senders)
        assert ends.num_sent_bytes < ORDER.num_tokens * 2 * 8192


@by_both
async def test_of_a_sender_that_is_killed_the_receiver_hears_at_once_and_keeps_nothing(transport: Transport) -> None:
    async with two_ends() as ends, child("send") as sender:
        here, offer = ends.decode.reserved(ORDER.num_tokens), ends.offer(transport)
        async with calling(await line_of(sender), offer) as call:
            receiving = asyncio.create_task(ends.receive(call, offer, here, ORDER))
            assert await line_of(sender) == "stuck"
            if transport is Transport.SHM:
                assert num_mappings() == 1

            os.kill(sender.pid, signal.SIGKILL)

            with pytest.raises((GemlineError, grpc.aio.AioRpcError)):
                await asyncio.wait_for(receiving, 10)
            del receiving, call
        assert await becomes_true(lambda: num_mappings() == 0)
