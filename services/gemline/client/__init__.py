"""The SDK: gemline's gateway from Python, sync and async. Needs grpcio and protobuf only.

    from gemline.client import Client, Message

    with Client("127.0.0.1:50051", api_key="gk_...") as client:
        print(client.generate("Once upon a time", max_tokens=20).text)
        with client.chat_stream([Message("user", "Hello")]) as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.usage, stream.finish_reason, stream.request_id)

A conversation that the gateway keeps takes each time what is new alone:

    session = client.sessions.create(ttl_s=3600)
    print(session.chat("Hello").text, session.chat("And then?").text)

`AsyncClient` is the same with `await`, `async with` and `async for`.
"""

from gemline import errors
from gemline.client.aio import AsyncClient
from gemline.client.aio_sessions import AsyncSession
from gemline.client.aio_stream import AsyncStream
from gemline.client.options import Keepalive, Tls
from gemline.client.retry import RetryPolicy
from gemline.client.sync import Client
from gemline.client.sync_sessions import Session
from gemline.client.sync_stream import Stream
from gemline.client.types import (
    Completion,
    Message,
    Model,
    Piece,
    PositionLogprobs,
    Sampling,
    SessionInfo,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = [
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
