"""The SDK: gemline's gateway from Python, sync and async. Needs grpcio and protobuf only.

    from gemline.client import Client, Message

    with Client("127.0.0.1:50051", api_key="gk_...") as client:
        print(client.generate("Once upon a time", max_tokens=20).text)
        with client.chat_stream([Message("user", "Hello")]) as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.usage, stream.finish_reason, stream.request_id)

`AsyncClient` is the same with `await`, `async with` and `async for`.
"""

from gemline import errors
from gemline.client.aio import AsyncClient
from gemline.client.aio_stream import AsyncStream
from gemline.client.options import Keepalive, Tls
from gemline.client.retry import RetryPolicy
from gemline.client.sync import Client
from gemline.client.sync_stream import Stream
from gemline.client.types import (
    Completion,
    Message,
    Model,
    Piece,
    PositionLogprobs,
    Sampling,
    TokenLogprob,
    Usage,
)

__all__ = [
    "AsyncClient",
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
    "Stream",
    "Tls",
    "TokenLogprob",
    "Usage",
    "errors",
]
