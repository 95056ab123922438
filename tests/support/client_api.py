"""Both clients behind one asyncio face, so that a test says once what holds for both."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from gemline.client import AsyncClient, AsyncStream, Client, Completion, Model, Piece, Stream

AnyStream = Stream | AsyncStream


class ClientApi(Protocol):
    """What the tests ask of a client."""

    async def generate(self, prompt: str, **options: Any) -> Completion: ...
    async def chat(self, messages: Any, **options: Any) -> Completion: ...
    async def count_tokens(self, prompt: Any, **options: Any) -> int: ...
    async def models(self) -> tuple[Model, ...]: ...
    def generate_stream(self, prompt: str, **options: Any) -> AnyStream: ...
    def chat_stream(self, messages: Any, **options: Any) -> AnyStream: ...
    async def close(self) -> None: ...
    @property
    def sessions(self) -> Any: ...


class SyncApi:
    """The sync client, each call in a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.sessions: Any = client.sessions

    async def generate(self, prompt: str, **options: Any) -> Completion:
        return await asyncio.to_thread(self._client.generate, prompt, **options)

    async def chat(self, messages: Any, **options: Any) -> Completion:
        return await asyncio.to_thread(self._client.chat, messages, **options)

    async def count_tokens(self, prompt: Any, **options: Any) -> int:
        return await asyncio.to_thread(self._client.count_tokens, prompt, **options)

    async def models(self) -> tuple[Model, ...]:
        return await asyncio.to_thread(self._client.models)

    def generate_stream(self, prompt: str, **options: Any) -> Stream:
        return self._client.generate_stream(prompt, **options)

    def chat_stream(self, messages: Any, **options: Any) -> Stream:
        return self._client.chat_stream(messages, **options)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)


class AsyncApi:
    """The async client as it is."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.generate: Any = client.generate
        self.chat: Any = client.chat
        self.count_tokens: Any = client.count_tokens
        self.models: Any = client.models
        self.generate_stream: Any = client.generate_stream
        self.chat_stream: Any = client.chat_stream
        self.close: Any = client.close
        self.sessions: Any = client.sessions


async def call(method: Any, *arguments: Any, **options: Any) -> Any:
    """What a method of either client gives: a sync one is called in a thread."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments, **options)
    return await asyncio.to_thread(method, *arguments, **options)


async def listed(api: ClientApi) -> list[Any]:
    """All sessions."""
    found = api.sessions.list()
    if isinstance(found, AsyncIterator):
        return [session async for session in found]
    return await asyncio.to_thread(list, found)


async def next_piece(stream: AnyStream) -> Piece | None:
    """The stream's next piece; None at its end."""
    if isinstance(stream, AsyncStream):
        return await anext(stream, None)
    return await asyncio.to_thread(next, stream, None)


async def read_all(stream: AnyStream) -> list[Piece]:
    """Every piece that is left."""
    pieces = []
    while (piece := await next_piece(stream)) is not None:
        pieces.append(piece)
    return pieces


@asynccontextmanager
async def entered(stream: AnyStream) -> AsyncIterator[AnyStream]:
    """The stream's own context manager."""
    if isinstance(stream, AsyncStream):
        async with stream:
            yield stream
    else:
        with stream:
            yield stream
