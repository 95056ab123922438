"""Calls with no message, with bytes that are none, and with too many: the caller's mistakes, never faults of ours."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from support.grpc_attack import call
from support.grpc_fuzz import METHODS, REFLECTION, Case, path_of, valid
from support.in_process import MODEL, InProcess

from gemline.cluster.connection import connect
from gemline.cluster.records import Role
from gemline.cluster.workers import WorkersView
from gemline.gateway.grpc_server import PublicServer
from gemline.rpc import malformed

HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
UNREADABLE = b"\x0a\xff\x01"  # a field that announces more than there is


@pytest.fixture
async def channel(platform: InProcess) -> AsyncIterator[grpc.Channel]:
    server = await PublicServer(platform.gateway, platform.settings).start()
    with grpc.insecure_channel(server.address) as channel:
        yield channel
    await server.stop()


@pytest.fixture
def key(platform: InProcess) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {platform.api_key}"),)


Key = tuple[tuple[str, str], ...]


async def test_bytes_that_are_no_message_are_the_callers_mistake(channel: grpc.Channel, key: Key) -> None:
    for path in (*map(path_of, METHODS), *HEALTH, REFLECTION):
        status, details = await call(channel, Case(path, (UNREADABLE,)), key)
        assert status is grpc.StatusCode.INVALID_ARGUMENT, path
        assert "cannot be read" in details and "Error" not in details


async def test_a_call_without_its_message_is_answered(channel: grpc.Channel, key: Key) -> None:
    for path in (*map(path_of, METHODS), *HEALTH):
        status, details = await call(channel, Case(path, ()), key)
        assert (status, details) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "the call has no message; this method takes one",
        ), path
    assert await call(channel, Case(REFLECTION, ()), key) == (grpc.StatusCode.OK, "")


async def test_of_several_messages_the_first_is_the_one(channel: grpc.Channel, key: Key) -> None:
    for method in METHODS:
        message = valid(method, MODEL).SerializeToString()
        once = await call(channel, Case(path_of(method), (message,)), key)
        assert await call(channel, Case(path_of(method), (message, UNREADABLE)), key) == once


async def test_a_stream_ends_at_the_first_message_that_cannot_be_read(channel: grpc.Channel, key: Key) -> None:
    status, _ = await call(channel, Case(REFLECTION, (b"\x3a\x00", UNREADABLE)), key)
    assert status is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_call_that_says_nothing_does_not_stay(
    channel: grpc.Channel, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malformed, "ARRIVAL_TIMEOUT_S", 0.2)
    silent: Any = channel.stream_stream(path_of(METHODS[0]))
    calling = silent(iter(threading.Event().wait, None), metadata=key, timeout=20)
    with pytest.raises(grpc.RpcError):
        await asyncio.to_thread(next, calling)
    assert calling.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no message for 0.2 s" in calling.details()


async def test_without_a_key_not_even_bytes_are_looked_at(channel: grpc.Channel) -> None:
    for path in (*map(path_of, METHODS), REFLECTION):
        status, _ = await call(channel, Case(path, (UNREADABLE,)), ())
        assert status is grpc.StatusCode.UNAUTHENTICATED, path


@pytest.mark.parametrize(
    ("role", "method", "has_one"),
    [
        (Role.TOKENIZATION, "Tokenization/Encode", True),
        (Role.TOKENIZATION, "Tokenization/FetchTokenizer", True),
        (Role.DECODE, "Decode/Attach", False),
    ],
)
async def test_a_workers_port_says_so_too(
    platform: InProcess, redis_url: str, role: Role, method: str, has_one: bool
) -> None:
    path = f"/gemline.internal.v1.{method}"
    redis = connect(redis_url)
    async with aclosing(redis):
        view = WorkersView(redis)
        await view.start()
        (worker,) = view.workers(role)
        await view.stop()
    with grpc.insecure_channel(worker.address) as channel:
        status, details = await call(channel, Case(path, (UNREADABLE,)), ())
        assert status is grpc.StatusCode.INVALID_ARGUMENT
        assert "cannot be read" in details and "Error" not in details
        if has_one:
            status, _ = await call(channel, Case(path, ()), ())
            assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert platform.gateway.ready()
