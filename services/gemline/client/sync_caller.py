"""One connection to a gateway for programs without an event loop: opens it, calls, tries again, closes it."""

import time
from typing import TypeVar

import grpc

from gemline.client import requests
from gemline.client.retry import Tries
from gemline.client.target import CLOSED, Target
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import inference_pb2_grpc as inference_rpc
from gemline.v1 import sessions_pb2_grpc as sessions_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")


class Caller:
    """Threads may share one."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel = self._open_channel(target)
        self._inference = inference_rpc.InferenceStub(self._channel)
        self._sessions = sessions_rpc.SessionsStub(self._channel)
        self._is_closed = False

    @property
    def inference(self) -> inference_rpc.InferenceStub:
        """The methods of gemline.v1.Inference."""
        self._check_open()
        return self._inference

    @property
    def sessions(self) -> sessions_rpc.SessionsStub:
        """The methods of gemline.v1.Sessions."""
        self._check_open()
        return self._sessions

    def send(
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Response]", request: Request, tries: Tries
    ) -> Response:
        """The response; raises one of gemline.errors."""
        while True:
            try:
                return method(request, timeout=tries.remaining_s(), metadata=self.target.metadata)
            except grpc.RpcError as failure:
                pause_s = tries.pause_s(failure)
            time.sleep(pause_s)

    def only_model(self, tries: Tries) -> str:
        """The name of the only model the gateway serves."""
        return requests.only_model(self.send(self.inference.ListModels, pb.ListModelsRequest(), tries).models)

    def close(self) -> None:
        """End every call."""
        self._is_closed = True
        self._channel.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(CLOSED)

    @staticmethod
    def _open_channel(target: Target) -> grpc.Channel:
        if target.credentials is None:
            return grpc.insecure_channel(target.address, target.options)
        return grpc.secure_channel(target.address, target.credentials, target.options)
