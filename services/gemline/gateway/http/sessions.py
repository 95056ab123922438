"""/v1/sessions and what is below it. Another tenant's session is not found, as one that never was."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from gemline.errors import InvalidRequest, ModelNotAllowed, ModelNotFound, SessionNotFound
from gemline.gateway.http.answering import AnswerResponse
from gemline.gateway.http.answers import ChatAnswer, ChatChunk, SessionAnswer, SessionDeleted, SessionListAnswer
from gemline.gateway.http.chat import chat_order
from gemline.gateway.http.docs import asks, gives, takes
from gemline.gateway.http.forms import CHAT
from gemline.gateway.http.generating import IN_SESSION
from gemline.gateway.http.interface import AnswerStream, Core, SessionCore
from gemline.gateway.http.orders import tenant_of
from gemline.gateway.http.parsing import parse_body, read_body
from gemline.gateway.http.responses import json_response
from gemline.gateway.http.schemas import ForkBody, SessionBody, TurnBody
from gemline.gateway.requests import GenerationRequest, Tenant
from gemline.gateway.session_checks import DEFAULT_LIMIT, MAX_LIMIT
from gemline.gateway.sessions import Session

_PAGING = asks(
    limit={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    after={"type": "string", "description": "`next` of the page before"},
)

_MODEL = (ModelNotAllowed, ModelNotFound)


def sessions_router(core: Core) -> APIRouter:
    """Conversations that the gateway keeps."""
    router = APIRouter(tags=["sessions"])
    sessions = core.sessions

    @router.post("/v1/sessions", openapi_extra=takes(SessionBody) | gives(SessionAnswer, _MODEL))
    async def create_session(request: Request) -> Response:
        """A new, empty session; it ends `ttl_s` seconds after its last turn, by default an hour."""
        body = await read_body(request, SessionBody)
        made = await sessions.create(tenant_of(request), body.model, body.ttl_s, body.metadata or {})
        return json_response(_session(made))

    @router.get("/v1/sessions", openapi_extra=_PAGING | gives(SessionListAnswer))
    async def list_sessions(request: Request) -> Response:
        """The sessions of this key's tenant, the newest first."""
        limit, after = _limit(request.query_params), request.query_params.get("after", "")
        page = await sessions.page(tenant_of(request), limit, after)
        content = {"object": "list", "data": list(map(_session, page.sessions)), "has_more": bool(page.after)}
        return json_response(content | {"next": page.after or None})

    @router.get("/v1/sessions/{session_id}", openapi_extra=gives(SessionAnswer, (SessionNotFound,)))
    async def retrieve_session(request: Request, session_id: str) -> Response:
        """One of them: what it is and holds, never its words."""
        return json_response(_session(await sessions.get(tenant_of(request), session_id)))

    @router.delete("/v1/sessions/{session_id}", openapi_extra=gives(SessionDeleted, (SessionNotFound,)))
    async def delete_session(request: Request, session_id: str) -> Response:
        """Its end."""
        await sessions.delete(tenant_of(request), session_id)
        return json_response({"id": session_id, "object": "session.deleted", "deleted": True})

    @router.post(
        "/v1/sessions/{session_id}/fork",
        openapi_extra=takes(ForkBody, required=False) | gives(SessionAnswer, (*_MODEL, SessionNotFound)),
    )
    async def fork_session(request: Request, session_id: str) -> Response:
        """A new session with the turns that this one has now; its ttl and metadata are the same unless given."""
        body = parse_body(await request.body() or b"{}", ForkBody)
        forked = await sessions.fork(tenant_of(request), session_id, body.ttl_s, body.metadata)
        return json_response(_session(forked))

    @router.post(
        "/v1/sessions/{session_id}/chat/completions",
        openapi_extra=takes(TurnBody) | gives(ChatAnswer, IN_SESSION, events=ChatChunk),
    )
    async def create_session_chat_completion(request: Request, session_id: str) -> Response:
        """The model's next turn, as of /v1/chat/completions; `messages` holds what is new alone.

        The session has the turn when the answer has ended. One that fails, or that its client leaves, changes nothing.
        When the session cannot keep an answer, an error `turn_not_saved` stands in place of its end.
        """
        body = await read_body(request, TurnBody)
        if (body.n or 1) > 1:
            raise InvalidRequest(f"n must be 1, not {body.n}: a turn of a session has one answer", param="n")
        tenant = tenant_of(request)
        if not body.model:
            body = body.model_copy(update={"model": (await sessions.get(tenant, session_id)).record.model_id})
        return AnswerResponse(_Turns(sessions, session_id), tenant, chat_order(request, body), CHAT)

    return router


class _Turns:
    """Generates in one session."""

    def __init__(self, sessions: SessionCore, session_id: str) -> None:
        self._sessions = sessions
        self._session_id = session_id

    async def generate(self, tenant: Tenant, request: GenerationRequest, *, traceparent: str = "") -> AnswerStream:
        """Start one answer."""
        return await self._sessions.generate(tenant, self._session_id, request, traceparent=traceparent)


def _session(session: Session) -> dict[str, Any]:
    record = session.record
    return {
        "id": record.session_id,
        "object": "session",
        "model": record.model_id,
        "num_turns": record.num_turns,
        "num_tokens": record.num_tokens,
        "created_at": record.made_us // 1_000_000,
        "updated_at": record.updated_us // 1_000_000,
        "expires_at": int(record.ends_s),
        "ttl_s": int(record.ttl_s),
        "owner_present": session.owner_present,
        "kv_bytes": record.residence.num_bytes,
        "metadata": dict(record.metadata),
    }


def _limit(query: Mapping[str, str]) -> int | None:
    given = query.get("limit")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise InvalidRequest(f"limit must be a number, not {given[:80]!r}", param="limit")
    return int(given)
