"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request, Response

from gemline.errors import InvalidRequest
from gemline.gateway.http.answering import AnswerResponse, Order
from gemline.gateway.http.answers import ChatAnswer, ChatChunk
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.forms import CHAT
from gemline.gateway.http.generating import FAILS
from gemline.gateway.http.interface import Core
from gemline.gateway.http.orders import build_order, messages_of, tenant_of
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.schemas import ChatBody
from gemline.gateway.http.tool_bodies import tool_use_of
from gemline.gateway.requests import Prompt
from gemline.gateway.session_checks import check_metadata


def chat_router(core: Core) -> APIRouter:
    """The next turn of a conversation."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions", openapi_extra=takes(ChatBody) | gives(ChatAnswer, FAILS, events=ChatChunk))
    async def create_chat_completion(request: Request) -> Response:
        """The model's next turn: one JSON object, or server-sent events with `stream`."""
        body = await read_body(request, ChatBody)
        return AnswerResponse(core, tenant_of(request), chat_order(request, body), CHAT)

    return router


def chat_order(request: Request, body: ChatBody) -> Order:
    """What the body asks for; raises InvalidRequest for what its fields cannot mean together."""
    check_metadata(body.metadata or {})
    use = tool_use_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    if use is None and not body.tools and body.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice is for requests with tools", param="tool_choice")
    prompts = (Prompt(messages=messages_of(body.messages, use)),)
    return build_order(request, body, prompts, max_tokens=_max_tokens(body), logprobs=_logprobs(body), use=use)


def _max_tokens(body: ChatBody) -> int | None:
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        message = f"max_completion_tokens is {new} but max_tokens, its older name, is {old}"
        raise InvalidRequest(message, param="max_completion_tokens")
    return old if new is None else new


def _logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs is for requests with logprobs set to true", param="top_logprobs")
    return None
