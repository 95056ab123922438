"""Sends hostile calls and hostile connections to a gateway's gRPC port, and counts what comes back."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from support.grpc_frames import connections
from support.grpc_fuzz import Case, cases

from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

CALL_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 0.5
_NUM_AT_ONCE = 16
# What no input may be answered with: a fault of ours, or of a handler that nobody guards.
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


@dataclass
class Outcome:
    """Of one attack."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # a line for each answer that may not be
    num_connections: int = 0
    good_s: list[float] = field(default_factory=list)  # how long the good requests among them took
    rss_before: int = 0
    rss_after: int = 0  # bytes of the gateway


@dataclass(frozen=True)
class Victim:
    """A gateway in a process of its own."""

    address: str
    pid: int
    key: str
    model: str

    @property
    def rss(self) -> int:
        """Its resident memory in bytes; raises FileNotFoundError when it is dead."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """With its key."""
        return (("authorization", f"Bearer {self.key}"),)


async def attack(victim: Victim, seed: int, num_cases: int, num_connections: int, rounds: int = 4) -> Outcome:
    """All of it in rounds, a good request behind each, while half-open connections of the round are still there."""
    outcome = Outcome()
    await _good(victim, outcome)
    for number in range(rounds):
        begun = seed * 1000 + number
        async with contextlib.AsyncExitStack() as held:
            await _connect_all(victim, held, list(connections(begun, num_connections // rounds, victim.key)), outcome)
            with grpc.insecure_channel(victim.address) as channel:
                await _call_all(channel, victim, list(cases(begun, num_cases // rounds, victim.model)), outcome)
            await _good(victim, outcome)
        await _good(victim, outcome)
        if number == 0:  # what it needs to serve at all is there now
            outcome.rss_before = victim.rss
    outcome.rss_after = victim.rss
    return outcome


async def _call_all(channel: grpc.Channel, victim: Victim, todo: Sequence[Case], outcome: Outcome) -> None:
    places = asyncio.Semaphore(_NUM_AT_ONCE)

    async def one(case: Case) -> None:
        async with places:
            status, details = await call(channel, case, victim.metadata)
            outcome.statuses[status.name] += 1
            if status in FAULTS:
                outcome.faults.append(f"{status.name} {details[:200]!r} for {_shown(case)}")

    await asyncio.gather(*map(one, todo))


async def call(channel: grpc.Channel, case: Case, metadata: Iterable[tuple[str, str]]) -> tuple[grpc.StatusCode, str]:
    """The status of a call, and its details. On the wire a method of any kind is a stream of messages each way.

    By the synchronous client: grpc.aio's, when its stream has a status while it still writes to it, says INTERNAL.
    """
    return await asyncio.to_thread(_call, channel, case, (*metadata, *case.metadata))


def _call(channel: grpc.Channel, case: Case, metadata: Any) -> tuple[grpc.StatusCode, str]:
    stream: Any = channel.stream_stream(case.path)  # without serializers: bytes
    calling = stream(iter(case.messages), metadata=metadata, timeout=CALL_TIMEOUT_S)
    try:
        for _ in calling:
            pass
    except grpc.RpcError:
        pass
    return calling.code(), calling.details() or ""


async def _connect_all(
    victim: Victim, held: contextlib.AsyncExitStack, todo: Sequence[Sequence[bytes]], outcome: Outcome
) -> None:
    host, _, port = victim.address.rpartition(":")

    async def one(pieces: Sequence[bytes]) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        held.callback(writer.close)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(READ_TIMEOUT_S):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()  # raises when the server has closed it by now
                while await reader.read(65_536):
                    pass
        outcome.num_connections += 1

    for start in range(0, len(todo), _NUM_AT_ONCE):
        await asyncio.gather(*map(one, todo[start : start + _NUM_AT_ONCE]))


async def _good(victim: Victim, outcome: Outcome) -> None:
    """A request that is right, on a connection of its own; raises unless it is answered."""
    begun_s = time.monotonic()
    async with grpc.aio.insecure_channel(victim.address) as channel:
        stub: Any = InferenceStub(channel)
        request = pb.GenerateRequest(model=victim.model, prompt="Hello", sampling=pb.SamplingOptions(max_tokens=1))
        answer = await stub.Generate(request, metadata=victim.metadata, timeout=CALL_TIMEOUT_S)
        assert answer.usage.completion_tokens == 1
    outcome.good_s.append(time.monotonic() - begun_s)


def _shown(case: Case) -> str:
    sizes = [len(message) for message in case.messages]
    begin = case.messages[0][:60].hex() if case.messages else ""
    return f"{case.path[:80]}, messages of {sizes} bytes: {begin}"
