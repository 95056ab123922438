"""Conversations that the gateway keeps, for asyncio programs."""

from collections.abc import AsyncIterator, Mapping
from typing import Unpack

from gemline.client import requests, responses
from gemline.client.aio_caller import AsyncCaller
from gemline.client.aio_stream import AsyncCall, AsyncStream
from gemline.client.answer import completion
from gemline.client.retry import Tries
from gemline.client.types import Completion, Messages, Sampling, SessionInfo
from gemline.errors import SessionNotFound
from gemline.v1 import sessions_pb2 as pb


class AsyncSession:
    """One conversation. `info` is what was known of it when the gateway last said so: see `refresh`."""

    def __init__(self, caller: AsyncCaller, info: SessionInfo) -> None:
        self._caller = caller
        self.info = info

    @property
    def id(self) -> str:
        """Its id, by which `AsyncSessions.get` finds it again."""
        return self.info.id

    async def chat(
        self, message: str | Messages, *, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> Completion:
        """The next turn. Sent again only when the gateway says that it did not take it."""
        stream = self.stream(message, timeout_s=timeout_s, **sampling)
        async for _ in stream:
            pass
        return completion(stream)

    def stream(
        self, message: str | Messages, *, timeout_s: float | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncStream:
        """The next turn, piece by piece. One that is canceled, or fails, changes nothing in the session."""
        request = requests.turn(self.id, message, sampling)

        async def open_call(tries: Tries) -> AsyncCall:
            method, target = self._caller.sessions.Chat, self._caller.target
            return method(request, timeout=tries.remaining_s(), metadata=target.metadata)

        return AsyncStream(open_call, self._caller.target.tries(timeout_s, changes=True))

    async def fork(
        self,
        *,
        ttl_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> "AsyncSession":
        """A new session that begins with the same turns; its ttl and metadata are the same unless given."""
        request = requests.fork_session(self.id, ttl_s, metadata)
        tries = self._caller.target.tries(timeout_s, changes=True)
        response = await self._caller.send(self._caller.sessions.Fork, request, tries)
        return AsyncSession(self._caller, responses.session(response.session))

    async def refresh(self, *, timeout_s: float | None = None) -> SessionInfo:
        """What the gateway knows of it now."""
        request, tries = pb.GetSessionRequest(session_id=self.id), self._caller.target.tries(timeout_s)
        response = await self._caller.send(self._caller.sessions.Get, request, tries)
        self.info = responses.session(response.session)
        return self.info

    async def delete(self, *, timeout_s: float | None = None) -> None:
        """End it."""
        request, tries = pb.DeleteSessionRequest(session_id=self.id), self._caller.target.tries(timeout_s)
        try:
            await self._caller.send(self._caller.sessions.Delete, request, tries)
        except SessionNotFound:
            if not tries.is_retry:  # else the try before may have done it
                raise


class AsyncSessions:
    """The caller's sessions: `client.sessions`."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller

    async def create(
        self,
        *,
        model: str | None = None,
        ttl_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncSession:
        """A new, empty one; it ends `ttl_s` seconds after its last turn, by default an hour."""
        tries = self._caller.target.tries(timeout_s, changes=True)
        request = requests.create_session(ttl_s, metadata)
        request.model = model or self._caller.target.model or await self._caller.only_model(tries)
        response = await self._caller.send(self._caller.sessions.Create, request, tries)
        return AsyncSession(self._caller, responses.session(response.session))

    async def get(self, session_id: str, *, timeout_s: float | None = None) -> AsyncSession:
        """One that is there; raises SessionNotFound."""
        request, tries = requests.get_session(session_id), self._caller.target.tries(timeout_s)
        response = await self._caller.send(self._caller.sessions.Get, request, tries)
        return AsyncSession(self._caller, responses.session(response.session))

    async def list(self, *, timeout_s: float | None = None) -> AsyncIterator[AsyncSession]:
        """All of them, the newest first, fetched page by page; `timeout_s` is for one page."""
        request = pb.ListSessionsRequest(limit=requests.PAGE)
        while True:
            tries = self._caller.target.tries(timeout_s)
            page = await self._caller.send(self._caller.sessions.List, request, tries)
            for session in page.sessions:
                yield AsyncSession(self._caller, responses.session(session))
            if not page.next:
                return
            request.after = page.next
