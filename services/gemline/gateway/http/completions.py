"""POST /v1/completions."""

from fastapi import APIRouter, Request, Response

from gemline.gateway.http.answering import AnswerResponse
from gemline.gateway.http.answers import CompletionAnswer, CompletionChunk
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.forms import COMPLETION
from gemline.gateway.http.generating import FAILS
from gemline.gateway.http.interface import Core
from gemline.gateway.http.orders import build_order, tenant_of
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.schemas import CompletionBody

_DEFAULT_MAX_TOKENS = 16  # OpenAI's; a chat's answer may fill the context


def completions_router(core: Core) -> APIRouter:
    """What follows a prompt."""
    router = APIRouter(tags=["completions"])

    says = gives(CompletionAnswer, FAILS, events=CompletionChunk)

    @router.post("/v1/completions", openapi_extra=takes(CompletionBody) | says)
    async def create_completion(request: Request) -> Response:
        """The continuation of each prompt: one JSON object, or server-sent events with `stream`."""
        body = await read_body(request, CompletionBody)
        max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        order = build_order(
            request, body, body.prompt, max_tokens=max_tokens, logprobs=body.logprobs, echo=bool(body.echo)
        )
        return AnswerResponse(core, tenant_of(request), order, COMPLETION)

    return router
