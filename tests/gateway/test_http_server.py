"""What the HTTP server bears of clients that send too much, or too slowly, or take nothing; nobody has shown a key."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gemline.gateway import http_server
from gemline.gateway.http_server import MAX_HEAD_BYTES, HttpServer
from gemline.gateway.settings import GatewaySettings

HEAD = b"POST / HTTP/1.1\r\nhost: gateway\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]


class App:
    """Reads the body and says how long it is; or, where the path is /endless, writes for as long as somebody reads."""

    def __init__(self) -> None:
        self.num_left = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            self.num_left += 1
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/endless":
            return await send({"type": "http.response.body", "body": b"%d bytes" % len(body)})
        writing = asyncio.create_task(self._write_for_ever(send))
        assert (await receive())["type"] == "http.disconnect"
        self.num_left += 1
        writing.cancel()

    async def _write_for_ever(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)  # once the client is gone, `send` returns at once


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def connect(app: App) -> AsyncIterator[Connect]:
    server = HttpServer(app, GatewaySettings(drain_timeout_s=0))
    await server.start()
    writers = []

    async def connect() -> Streams:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
    await server.stop()


async def sent(streams: Streams, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = streams
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""


@pytest.mark.parametrize(
    "endless",
    [
        (HEAD, b"x: ", *[b"y" * 65536] * 20),
        (HEAD, *[b"x: y\r\n" * 10_000] * 20),
        (b"GET /", *[b"y" * 65536] * 20),
        (HEAD, b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", *[b"x: y\r\n" * 10_000] * 20),
        (HEAD, b"transfer-encoding: chunked\r\n\r\n1;", *[b"y" * 65536] * 20),
    ],
    ids=["one header", "many headers", "path", "trailers", "chunk extension"],
)
async def test_a_head_without_end_ends_its_connection(connect: Connect, endless: tuple[bytes, ...]) -> None:
    async with asyncio.timeout(20):
        answer = await sent(await connect(), *endless)
    assert b"200 OK" not in answer


async def test_a_large_head_and_a_larger_body_are_taken(connect: Connect) -> None:
    body = b"y" * (8 * MAX_HEAD_BYTES)
    head = HEAD + b"x: %s\r\nconnection: close\r\n" % (b"y" * (MAX_HEAD_BYTES // 2))
    answer = await sent(await connect(), head, b"content-length: %d\r\n\r\n" % len(body), body)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"%d bytes" % len(body) in answer


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + b"content-length: 100\r\n\r\n"], ids=["nothing", "head", "body"])
async def test_a_request_that_trickles_in_is_given_up(
    app: App, connect: Connect, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "ARRIVAL_TIMEOUT_S", 0.3)
    assert await sent(await connect(), begun, *[b"x"] * (20 if begun else 0), pause_s=0.05) == b""
    assert app.num_left == (1 if b"content-length" in begun else 0)


async def test_an_answer_may_take_longer_than_its_request(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "ARRIVAL_TIMEOUT_S", 0.2)
    reader, writer = await connect()
    writer.write(b"GET /endless HTTP/1.1\r\nhost: gateway\r\n\r\n")
    async with asyncio.timeout(10):
        until = asyncio.get_running_loop().time() + 0.6
        while asyncio.get_running_loop().time() < until:
            assert await reader.read(65536)
            await asyncio.sleep(0.01)


async def test_a_client_that_takes_nothing_is_given_up(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STALL_TIMEOUT_S", 0.5)
    server = HttpServer(app, GatewaySettings(drain_timeout_s=0))
    await server.start()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nhost: gateway\r\n\r\n")
        async with asyncio.timeout(30):
            while not app.num_left:  # noqa: ASYNC110 - it is the server's
                await asyncio.sleep(0.05)
    await server.stop()
