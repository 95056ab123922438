"""The door for data connections: opens to who was told its number and knows the token, and costs little otherwise."""

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemline.errors import ConfigurationError
from gemline.transfer.connection import Connection, connect_local, connect_tcp
from gemline.transfer.frames import TransferError
from gemline.transfer.handshake import say_hello
from gemline.transfer.listener import Listener

TOKEN, OTHER = b"t" * 32, b"u" * 32
THREADS = ThreadPoolExecutor(2)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener(THREADS)
    listener.listen("127.0.0.1", 0)
    listener.listen_locally()
    yield listener
    await listener.close()


async def connected(listener: Listener, *, is_local: bool) -> Connection:
    if is_local:
        return await connect_local(listener.local_name, THREADS)
    return await connect_tcp("127.0.0.1", listener.port, THREADS)


async def is_shut_out(connection: Connection) -> bool:
    """Whether it is closed within the time that a hello may take."""
    with pytest.raises(TransferError, match=r"closed|broke"):
        await asyncio.wait_for(connection.receive(1), 5)
    connection.close()
    return True


@pytest.mark.parametrize("is_local", [False, True])
async def test_who_knows_call_and_token_is_let_in(listener: Listener, is_local: bool) -> None:
    with listener.expect(TOKEN, is_local=is_local) as expected:
        caller = await connected(listener, is_local=is_local)
        await say_hello(caller, expected.call_id, TOKEN)
        ours = await asyncio.wait_for(expected.connection(), 5)

    await ours.send(b"welcome")
    assert await caller.receive(7) == b"welcome"
    ours.close()
    caller.close()


@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize(("number", "token"), [(0, OTHER), (1, TOKEN), (0, TOKEN[:-1] + b"x")])
async def test_who_does_not_is_shut_out_and_spoils_nothing(
    listener: Listener, is_local: bool, number: int, token: bytes
) -> None:
    with listener.expect(TOKEN, is_local=is_local) as expected:
        stranger = await connected(listener, is_local=is_local)
        await say_hello(stranger, expected.call_id + number, token)
        assert await is_shut_out(stranger)

        caller = await connected(listener, is_local=is_local)
        await say_hello(caller, expected.call_id, TOKEN)
        (await asyncio.wait_for(expected.connection(), 5)).close()
        caller.close()


async def test_a_call_lets_in_one_caller_once_and_by_the_way_it_was_told(listener: Listener) -> None:
    with listener.expect(TOKEN, is_local=False) as expected:
        by_the_other = await connected(listener, is_local=True)
        await say_hello(by_the_other, expected.call_id, TOKEN)
        assert await is_shut_out(by_the_other)

        first, second = [await connected(listener, is_local=False) for _ in range(2)]
        await say_hello(first, expected.call_id, TOKEN)
        ours = await expected.connection()
        await say_hello(second, expected.call_id, TOKEN)
        assert await is_shut_out(second)
        ours.close()
        first.close()


async def test_a_call_that_is_over_lets_nobody_in_and_closes_who_came_too_late(listener: Listener) -> None:
    with listener.expect(TOKEN, is_local=False) as expected:
        caller = await connected(listener, is_local=False)
        await say_hello(caller, expected.call_id, TOKEN)
        await asyncio.sleep(0.05)
    assert await is_shut_out(caller)

    late = await connected(listener, is_local=False)
    await say_hello(late, expected.call_id, TOKEN)
    assert await is_shut_out(late)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"\0" * 1000, b"GKV1", b""])
async def test_what_is_no_hello_is_shut_out_after_44_bytes_or_a_second(listener: Listener, words: bytes) -> None:
    stranger = await connected(listener, is_local=False)
    await stranger.send(words)

    assert await is_shut_out(stranger)


async def test_more_strangers_than_are_listened_to_at_a_time_do_not_add_up(listener: Listener) -> None:
    silent = [await connected(listener, is_local=False) for _ in range(100)]
    await asyncio.sleep(0.1)
    assert listener.num_strangers <= 64

    for stranger in silent:
        assert await is_shut_out(stranger)
    with listener.expect(TOKEN, is_local=False) as expected:
        caller = await connected(listener, is_local=False)
        await say_hello(caller, expected.call_id, TOKEN)
        (await asyncio.wait_for(expected.connection(), 5)).close()
        caller.close()


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} for keys and values") as error:
            Listener(THREADS).listen("127.0.0.1", port)
    assert error.value.param == "kv_port"
