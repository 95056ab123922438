"""What users may import is a list: a name is added to it, or taken from it, on purpose."""

import inspect

import pytest

import gemline.client
import gemline.errors
from gemline.client import AsyncClient, AsyncSession, AsyncStream, Client, Session, Stream
from gemline.client.aio_sessions import AsyncSessions
from gemline.client.sync_sessions import Sessions

CLIENT = [
    "AsyncClient",
    "AsyncSession",
    "AsyncStream",
    "Client",
    "Completion",
    "Keepalive",
    "Message",
    "Model",
    "Piece",
    "PositionLogprobs",
    "RetryPolicy",
    "Sampling",
    "Session",
    "SessionInfo",
    "Stream",
    "Tls",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "errors",
]

ERRORS = [
    "CheckpointError",
    "ConfigurationError",
    "Conflict",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Forbidden",
    "GemlineError",
    "InternalError",
    "InvalidRequest",
    "MethodNotAllowed",
    "ModelNotAllowed",
    "ModelNotFound",
    "NotFound",
    "Overloaded",
    "PoisonRequest",
    "QuotaExceeded",
    "RateLimited",
    "RequestTooLarge",
    "RouteNotFound",
    "SessionNotFound",
    "StaleEpoch",
    "TurnNotSaved",
    "Unauthenticated",
    "Unavailable",
    "WorkerLost",
]

METHODS = ["chat", "chat_stream", "close", "count_tokens", "generate", "generate_stream", "models"]
SESSION = ["chat", "delete", "fork", "id", "refresh", "stream"]
SESSIONS = ["create", "get", "list"]
STREAM = ["band", "cancel", "finish_reason", "logprobs", "request_id", "text", "tool_calls", "usage"]


def public(thing: object) -> list[str]:
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def test_the_client_exports_exactly_this() -> None:
    assert gemline.client.__all__ == CLIENT
    assert all(hasattr(gemline.client, name) for name in CLIENT)


def test_the_errors_are_exactly_these() -> None:
    found = inspect.getmembers(gemline.errors, lambda member: inspect.isclass(member))
    assert sorted(name for name, member in found if issubclass(member, Exception)) == ERRORS


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_both_clients_have_exactly_these_methods(client: type) -> None:
    assert public(client) == sorted([*METHODS, "sessions"])


@pytest.mark.parametrize(("session", "sessions"), [(Session, Sessions), (AsyncSession, AsyncSessions)])
def test_both_sessions_have_exactly_these_members(session: type, sessions: type) -> None:
    assert (public(session), public(sessions)) == (SESSION, SESSIONS)


@pytest.mark.parametrize("stream", [Stream, AsyncStream])
def test_both_streams_have_exactly_these_members(stream: type) -> None:
    assert public(stream) == STREAM


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_both_clients_take_the_same_arguments(name: str) -> None:
    sync, asynchronous = (inspect.signature(getattr(client, name)) for client in (Client, AsyncClient))
    assert sync.parameters == asynchronous.parameters


@pytest.mark.parametrize("name", [*SESSION, *SESSIONS])
def test_both_sessions_take_the_same_arguments(name: str) -> None:
    kinds = ((Session, Sessions), (AsyncSession, AsyncSessions))
    sync, asynchronous = (getattr(kind[name in SESSIONS], name) for kind in kinds)
    if not isinstance(sync, property):
        assert inspect.signature(sync).parameters == inspect.signature(asynchronous).parameters
