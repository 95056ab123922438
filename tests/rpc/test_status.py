from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from gemline import errors
from gemline.errors import GemlineError
from gemline.rpc import status
from gemline.rpc.options import open_channel, server_options

ALL = [error for error in errors.BY_CODE.values() if not issubclass(error, errors.ConfigurationError)]
SERVICE = "test.Service"

Serve = Callable[..., Any]


class Server:
    """One method of raw bytes per kind of handler; each does what `act` does."""

    def __init__(self, act: Callable[[grpc.aio.ServicerContext[Any, Any]], Any]) -> None:
        self.act = act
        self.closed = asyncio.Event()

    async def unary(self, request: bytes, context: Any) -> bytes:
        await self.act(context)
        return b"answer"

    async def generate(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await self.act(context)
            yield b"second"
        finally:
            self.closed.set()

    async def write(self, request: bytes, context: Any) -> None:
        await context.write(b"first")
        await self.act(context)

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            await self.act(context)
        return b"answer"

    async def converse(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
            await self.act(context)

    async def start(self) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(interceptors=[status.ErrorInterceptor()], options=server_options())
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
            "Write": grpc.unary_stream_rpc_method_handler(self.write),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Converse": grpc.stream_stream_rpc_method_handler(self.converse),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


async def requests() -> AsyncIterator[bytes]:
    yield b"request"


async def call(channel: grpc.aio.Channel, method: str) -> list[bytes]:
    if method == "Unary":
        return [await unary(channel)(b"request")]
    path = f"/{SERVICE}/{method}"
    if method == "Collect":
        collect: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(path)
        return [await collect(requests())]
    if method == "Converse":
        converse: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
        return [answer async for answer in converse(requests())]
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
    return [answer async for answer in generate(b"request")]


def unary(channel: grpc.aio.Channel, method: str = "Unary") -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/{method}")


METHODS = ["Unary", "Generate", "Write", "Collect", "Converse"]


async def outcome_of(method: str, act: Callable[[Any], Any]) -> list[bytes] | GemlineError:
    server, address = await Server(act).start()
    try:
        async with open_channel(address) as channel:
            return await call(channel, method)
    except grpc.aio.AioRpcError as error:
        return status.from_rpc_error(error)
    finally:
        await server.stop(None)


def failing(error: BaseException) -> Callable[[Any], Any]:
    async def act(context: Any) -> None:
        raise error

    return act


async def nothing(context: Any) -> None:
    pass


@pytest.mark.parametrize("method", METHODS)
async def test_a_handler_that_does_not_fail_is_left_alone(method: str) -> None:
    assert isinstance(await outcome_of(method, nothing), list)


@pytest.mark.parametrize("method", METHODS)
async def test_an_error_arrives_as_what_it_was(method: str) -> None:
    error = await outcome_of(
        method, failing(errors.ContextLengthExceeded("9000 of 8192 tokens – zu viel", param="prompt"))
    )
    assert type(error) is errors.ContextLengthExceeded
    assert (error.message, error.param) == ("9000 of 8192 tokens – zu viel", "prompt")


@pytest.mark.parametrize("method", METHODS)
async def test_a_bug_tells_nothing_of_the_inside(method: str, caplog: pytest.LogCaptureFixture) -> None:
    error = await outcome_of(method, failing(KeyError("what only we may know")))
    assert type(error) is errors.InternalError
    assert "may know" not in error.message and "KeyError" not in error.message
    assert "what only we may know" in caplog.text


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
async def test_every_error_has_its_own_status_on_the_wire(kind: type[GemlineError]) -> None:
    server, address = await Server(failing(kind("what happened"))).start()
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "Unary")
    assert caught.value.code() is grpc.StatusCode[kind.grpc_status]
    assert type(status.from_rpc_error(caught.value)) is kind
    await server.stop(None)


async def test_a_handler_may_abort_by_itself() -> None:
    async def act(context: Any) -> None:
        await status.abort(context, errors.StaleEpoch("epoch 3 was meant, this is 4"))

    error = await outcome_of("Unary", act)
    assert type(error) is errors.StaleEpoch
    assert error.message == "epoch 3 was meant, this is 4"


@pytest.mark.parametrize("message", ["x" * 1_000_000, "ä" * 500_000, "\n\r\0 %", "\ud800", ""])
async def test_any_message_and_param_can_be_sent(message: str) -> None:
    error = await outcome_of("Unary", failing(errors.InvalidRequest(message, param=f"logit_bias.{message}")))
    assert type(error) is errors.InvalidRequest
    assert error.message[:1] == message[:1] or message == "\ud800"
    assert error.param is not None and error.param.startswith("logit_bias.")


async def test_a_worker_that_is_not_there_is_unavailable_and_its_address_is_not_told() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "Unary")
    error = status.from_rpc_error(caught.value, peer="a decode worker")
    assert type(error) is errors.Unavailable
    assert error.message == "a decode worker cannot be reached"


async def test_a_deadline_that_passes_is_told_as_one() -> None:
    async def act(context: Any) -> None:
        await asyncio.sleep(10)

    server, address = await Server(act).start()
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel)(b"", timeout=0.05)
    assert type(status.from_rpc_error(caught.value)) is errors.DeadlineExceeded
    await server.stop(None)


async def test_a_message_over_the_limit_is_told_as_too_large() -> None:
    server, address = await Server(nothing).start()
    async with open_channel(address, max_message_bytes=1000) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel)(b"x" * 2000)
    assert type(status.from_rpc_error(caught.value)) is errors.RequestTooLarge
    await server.stop(None)


async def test_a_stream_that_breaks_closes_its_handler_at_once() -> None:
    async def act(context: Any) -> None:
        await asyncio.sleep(60)

    service = Server(act)
    server, address = await service.start()
    async with open_channel(address) as channel:
        generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Generate")
        stream = generate(b"")
        assert await stream.read() == b"first"
        stream.cancel()
        async with asyncio.timeout(10):
            await service.closed.wait()
    await server.stop(None)


async def test_a_method_that_nobody_serves_is_unimplemented() -> None:
    server, address = await Server(nothing).start()
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, "None")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)
