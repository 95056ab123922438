"""One connection to a gateway for asyncio programs: opens it, calls, tries again, closes it."""

import asyncio
from typing import NamedTuple, TypeVar

import grpc
from grpc import aio

from gemline.client import requests
from gemline.client.aio_stream import is_task_canceled
from gemline.client.retry import Tries
from gemline.client.target import CLOSED, Target
from gemline.errors import Unavailable
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import inference_pb2_grpc as inference_rpc
from gemline.v1 import sessions_pb2_grpc as sessions_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Opened(NamedTuple):
    channel: aio.Channel
    inference: "inference_rpc.InferenceAsyncStub"
    sessions: "sessions_rpc.SessionsAsyncStub"


class AsyncCaller:
    """Its channel opens in the event loop of the first call and belongs to it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._opened: _Opened | None = None
        self._is_closed = False

    @property
    def inference(self) -> "inference_rpc.InferenceAsyncStub":
        """The methods of gemline.v1.Inference."""
        return self._open().inference

    @property
    def sessions(self) -> "sessions_rpc.SessionsAsyncStub":
        """The methods of gemline.v1.Sessions."""
        return self._open().sessions

    async def send(
        self, method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, tries: Tries
    ) -> Response:
        """The response; raises one of gemline.errors."""
        while True:
            try:
                return await method(request, timeout=tries.remaining_s(), metadata=self.target.metadata)
            except grpc.RpcError as failure:
                pause_s = tries.pause_s(failure)
            except asyncio.CancelledError:
                if self._is_closed and not is_task_canceled():
                    raise Unavailable(f"{CLOSED}: it ended the call") from None
                raise
            await asyncio.sleep(pause_s)

    async def only_model(self, tries: Tries) -> str:
        """The name of the only model the gateway serves."""
        listed = await self.send(self.inference.ListModels, pb.ListModelsRequest(), tries)
        return requests.only_model(listed.models)

    async def close(self) -> None:
        """End every call."""
        self._is_closed = True
        if self._opened is not None:
            await self._opened.channel.close()

    def _open(self) -> _Opened:
        if self._is_closed:
            raise RuntimeError(CLOSED)
        if self._opened is None:
            channel = self._open_channel(self.target)
            stubs = inference_rpc.InferenceStub(channel), sessions_rpc.SessionsStub(channel)
            self._opened = _Opened(channel, *stubs)
        return self._opened

    @staticmethod
    def _open_channel(target: Target) -> aio.Channel:
        if target.credentials is None:
            return aio.insecure_channel(target.address, target.options)
        return aio.secure_channel(target.address, target.credentials, target.options)
