"""The public gRPC service gemline.v1.Sessions: each method converts, calls, converts. Decides nothing."""

from collections.abc import AsyncIterator

from gemline.gateway import grpc_convert as convert
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_call import Context, called
from gemline.gateway.grpc_formats import tool_use
from gemline.v1 import sessions_pb2 as pb
from gemline.v1.sessions_pb2_grpc import SessionsServicer


class PublicSessions(SessionsServicer):
    """Stands where PublicServicer does, on the same terms."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sessions = gateway.sessions

    async def Create(self, request: pb.CreateSessionRequest, context: Context) -> pb.CreateSessionResponse:
        """A new, empty session."""
        async with called(self._gateway, context) as call:
            ttl_s = request.ttl_s if request.HasField("ttl_s") else None
            made = await self._sessions.create(call.tenant, request.model, ttl_s, dict(request.metadata))
            return pb.CreateSessionResponse(session=convert.session(made))

    async def Get(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """What a session is and holds."""
        async with called(self._gateway, context) as call:
            found = await self._sessions.get(call.tenant, request.session_id)
            return pb.GetSessionResponse(session=convert.session(found))

    async def List(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """The caller's sessions, page by page."""
        async with called(self._gateway, context) as call:
            limit = request.limit if request.HasField("limit") else None
            page = await self._sessions.page(call.tenant, limit, request.after)
            return pb.ListSessionsResponse(sessions=map(convert.session, page.sessions), next=page.after)

    async def Delete(self, request: pb.DeleteSessionRequest, context: Context) -> pb.DeleteSessionResponse:
        """A session's end."""
        async with called(self._gateway, context) as call:
            await self._sessions.delete(call.tenant, request.session_id)
            return pb.DeleteSessionResponse()

    async def Fork(self, request: pb.ForkSessionRequest, context: Context) -> pb.ForkSessionResponse:
        """A new session that begins with the same turns."""
        async with called(self._gateway, context) as call:
            ttl_s = request.ttl_s if request.HasField("ttl_s") else None
            metadata = dict(request.metadata) or None
            forked = await self._sessions.fork(call.tenant, request.session_id, ttl_s, metadata)
            return pb.ForkSessionResponse(session=convert.session(forked))

    async def Chat(self, request: pb.ChatSessionRequest, context: Context) -> AsyncIterator[pb.ChatSessionResponse]:
        """The model's next turn, piece by piece."""
        async with called(self._gateway, context, asks_for_tokens=True) as call:
            use = tool_use(request.sampling.tools)
            prompt, options = (
                convert.chat_prompt(request.messages, use),
                convert.sampling_options(request.sampling, use),
            )
            band = convert.asked_band(request.band)
            asked = call.asks("", prompt, options, band=band, reads_calls=use is not None)
            answer = await self._sessions.generate(call.tenant, request.session_id, asked, traceparent=call.traceparent)
            served = call.tenant.band(band)
            async with answer:
                async for piece in answer:
                    yield pb.ChatSessionResponse(
                        request_id=call.request_id,
                        text=piece.text,
                        finish_reason=convert.finish_reason(piece),
                        usage=convert.usage(piece.usage),
                        logprobs=convert.logprobs(piece.logprobs),
                        band=convert.served_band(piece, served),
                        tool_calls=convert.calls(piece.calls),
                    )
