"""A gateway of the tests' own, for the other side of the SDK: it says what the test told it to, over real gRPC."""

from __future__ import annotations  # the context's type is in the stubs alone

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import NoReturn, Self

import grpc

from gemline.v1 import inference_pb2 as pb
from gemline.v1 import inference_pb2_grpc as rpc
from gemline.v1 import sessions_pb2
from gemline.v1 import sessions_pb2_grpc as sessions_rpc

REQUEST_ID = "req_0123456789abcdef01234567"
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fail:
    """End the call with this status."""

    status: grpc.StatusCode
    details: str = "it failed"
    metadata: Metadata = ()


NO_SESSION = Fail(grpc.StatusCode.NOT_FOUND, "there is no such session", (("gemline-code", "session_not_found"),))


@dataclass(frozen=True)
class Say:
    """Answer with these pieces; then end as a gateway does, or fail, or break off, or wait to be canceled."""

    pieces: tuple[str, ...] = ("Hel", "lo", "")
    fail: Fail | None = None
    break_off: bool = False
    hang: bool = False
    delay_s: float = 0.0
    logprobs: tuple[pb.PositionLogprobs, ...] = ()


@dataclass
class FakeGateway(rpc.InferenceServicer):
    """Takes the next entry of `script` for each answer, `Say()` when it is empty."""

    script: deque[Fail | Say] = field(default_factory=deque)
    models: list[pb.Model] = field(
        default_factory=lambda: [
            pb.Model(
                id="gemma",
                context_length=128,
                revision="ab",
                dtype="bfloat16",
                quantization="int8",
                kv_dtype="float8_e4m3",
            )
        ]
    )
    requests: list[object] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)  # a call is over, for whatever reason

    def Generate(self, request: pb.GenerateRequest, context: rpc._ServicerContext) -> pb.GenerateResponse:
        said = self._begin(request, context)
        return pb.GenerateResponse(
            request_id=REQUEST_ID,
            text="".join(said.pieces),
            finish_reason=pb.FINISH_REASON_STOP,
            usage=_usage(said),
            logprobs=said.logprobs,
        )

    def Chat(self, request: pb.ChatRequest, context: rpc._ServicerContext) -> pb.ChatResponse:
        said = self._begin(request, context)
        return pb.ChatResponse(
            request_id=REQUEST_ID,
            message=pb.Message(role=pb.ROLE_ASSISTANT, content="".join(said.pieces)),
            finish_reason=pb.FINISH_REASON_LENGTH,
            usage=_usage(said),
            logprobs=said.logprobs,
        )

    def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: rpc._ServicerContext
    ) -> Iterator[pb.GenerateStreamResponse]:
        said = self._begin(request, context)
        for text, is_last in self._pieces(said, context):
            yield pb.GenerateStreamResponse(
                request_id=REQUEST_ID,
                text=text,
                finish_reason=pb.FINISH_REASON_STOP if is_last else pb.FINISH_REASON_UNSPECIFIED,
                usage=_usage(said) if is_last else None,
                logprobs=said.logprobs,
            )

    def ChatStream(
        self, request: pb.ChatStreamRequest, context: rpc._ServicerContext
    ) -> Iterator[pb.ChatStreamResponse]:
        said = self._begin(request, context)
        for text, is_last in self._pieces(said, context):
            yield pb.ChatStreamResponse(
                request_id=REQUEST_ID,
                text=text,
                finish_reason=pb.FINISH_REASON_LENGTH if is_last else pb.FINISH_REASON_UNSPECIFIED,
                usage=_usage(said) if is_last else None,
                logprobs=said.logprobs,
            )

    def CountTokens(self, request: pb.CountTokensRequest, context: rpc._ServicerContext) -> pb.CountTokensResponse:
        self._begin(request, context)
        return pb.CountTokensResponse(num_tokens=len(request.prompt) + sum(len(m.content) for m in request.messages))

    def ListModels(self, request: pb.ListModelsRequest, context: rpc._ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=self.models)

    def _begin(self, request: object, context: grpc.ServicerContext) -> Say:
        self.requests.append(request)
        self.metadata.append({entry[0]: entry[1] for entry in context.invocation_metadata()})
        self.deadlines_s.append(context.time_remaining())
        context.add_callback(self.ended.set)
        context.send_initial_metadata((("x-request-id", REQUEST_ID),))
        step = self.script.popleft() if self.script else Say()
        if isinstance(step, Fail):
            _abort(context, step)
        time.sleep(step.delay_s)
        return step

    def _pieces(self, said: Say, context: grpc.ServicerContext) -> Iterator[tuple[str, bool]]:
        is_whole = not (said.fail or said.break_off or said.hang)
        for index, text in enumerate(said.pieces):
            yield text, is_whole and index == len(said.pieces) - 1
        if said.fail:
            _abort(context, said.fail)
        if said.hang:
            self.ended.wait(30)


@dataclass
class FakeSessions(sessions_rpc.SessionsServicer):
    """Sessions in memory, by the gateway's script; a deletion that fails with "done" has been carried out."""

    gateway: FakeGateway
    kept: dict[str, sessions_pb2.Session] = field(default_factory=dict)

    def Create(
        self, request: sessions_pb2.CreateSessionRequest, context: sessions_rpc._ServicerContext
    ) -> sessions_pb2.CreateSessionResponse:
        self._begin(request, context)
        made = self._keep(sessions_pb2.Session(model=request.model, ttl_s=request.ttl_s, metadata=request.metadata))
        return sessions_pb2.CreateSessionResponse(session=made)

    def Get(
        self, request: sessions_pb2.GetSessionRequest, context: sessions_rpc._ServicerContext
    ) -> sessions_pb2.GetSessionResponse:
        self._begin(request, context)
        return sessions_pb2.GetSessionResponse(session=self._find(request.session_id, context))

    def List(
        self, request: sessions_pb2.ListSessionsRequest, context: sessions_rpc._ServicerContext
    ) -> sessions_pb2.ListSessionsResponse:
        self._begin(request, context)
        start = int(request.after or 0)
        ids = sorted(self.kept)[start:]
        page = [self.kept[session_id] for session_id in ids[:2]]
        return sessions_pb2.ListSessionsResponse(sessions=page, next=str(start + 2) if len(ids) > 2 else "")

    def Delete(
        self, request: sessions_pb2.DeleteSessionRequest, context: sessions_rpc._ServicerContext
    ) -> sessions_pb2.DeleteSessionResponse:
        step = self.gateway.script[0] if self.gateway.script else None
        if isinstance(step, Fail) and step.details == "done":
            del self.kept[request.session_id]
        self._begin(request, context)
        self._find(request.session_id, context)
        del self.kept[request.session_id]
        return sessions_pb2.DeleteSessionResponse()

    def Fork(
        self, request: sessions_pb2.ForkSessionRequest, context: sessions_rpc._ServicerContext
    ) -> sessions_pb2.ForkSessionResponse:
        self._begin(request, context)
        source = self._find(request.session_id, context)
        return sessions_pb2.ForkSessionResponse(session=self._keep(source))

    def Chat(
        self, request: sessions_pb2.ChatSessionRequest, context: sessions_rpc._ServicerContext
    ) -> Iterator[sessions_pb2.ChatSessionResponse]:
        said = self._begin(request, context)
        session = self._find(request.session_id, context)
        for text, is_last in self.gateway._pieces(said, context):
            session.num_turns += is_last
            yield sessions_pb2.ChatSessionResponse(
                request_id=REQUEST_ID,
                text=text,
                finish_reason=pb.FINISH_REASON_STOP if is_last else pb.FINISH_REASON_UNSPECIFIED,
                usage=_usage(said) if is_last else None,
                logprobs=said.logprobs,
            )

    def _begin(self, request: object, context: grpc.ServicerContext) -> Say:
        return self.gateway._begin(request, context)

    def _keep(self, source: sessions_pb2.Session) -> sessions_pb2.Session:
        kept = sessions_pb2.Session()
        kept.CopyFrom(source)
        kept.id = f"ses_{len(self.kept):032}"
        for time_at in (kept.created_at, kept.updated_at, kept.expires_at):
            time_at.FromSeconds(1_700_000_000)
        self.kept[kept.id] = kept
        return kept

    def _find(self, session_id: str, context: grpc.ServicerContext) -> sessions_pb2.Session:
        if session_id not in self.kept:
            _abort(context, NO_SESSION)
        return self.kept[session_id]


def _abort(context: grpc.ServicerContext, fail: Fail) -> NoReturn:
    context.set_trailing_metadata((("x-request-id", REQUEST_ID), *fail.metadata))
    context.abort(fail.status, fail.details)
    raise AssertionError("abort raises")


def _usage(said: Say) -> pb.Usage:
    return pb.Usage(prompt_tokens=7, completion_tokens=len(said.pieces), cached_tokens=4)


class Served:
    """A fake gateway that listens on a port of 127.0.0.1."""

    def __init__(
        self,
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        options: tuple[tuple[str, int], ...] = (("grpc.so_reuseport", 0),),
    ) -> None:
        self.gateway = FakeGateway()
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        rpc.add_InferenceServicer_to_server(self.gateway, self._server)
        self.sessions = FakeSessions(self.gateway)
        sessions_rpc.add_SessionsServicer_to_server(self.sessions, self._server)
        address = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self.gateway.ended.set()
        self._server.stop(None).wait(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> None:
    """Serve in a process of its own, which a test may freeze; prints the address."""
    served = Served()
    served.gateway.script.append(Say(("once",), hang=True))
    print(served.address, flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
