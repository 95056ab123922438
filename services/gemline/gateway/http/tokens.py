"""POST /v1/tokenize and /v1/detokenize."""

from fastapi import APIRouter, Request, Response

from gemline.errors import InvalidRequest
from gemline.gateway.http.answers import DetokenizeAnswer, TokenizeAnswer
from gemline.gateway.http.docs import gives, takes
from gemline.gateway.http.generating import READS
from gemline.gateway.http.interface import Core
from gemline.gateway.http.orders import messages_of, tenant_of
from gemline.gateway.http.parsing import read_body
from gemline.gateway.http.responses import json_response
from gemline.gateway.http.schemas import DetokenizeBody, TokenizeBody
from gemline.gateway.requests import Prompt


def tokens_router(core: Core) -> APIRouter:
    """Between text and token ids."""
    router = APIRouter(tags=["tokens"])

    @router.post("/v1/tokenize", openapi_extra=takes(TokenizeBody) | gives(TokenizeAnswer, READS))
    async def tokenize(request: Request) -> Response:
        """The ids a model would read for a prompt or for messages, and how many fit it."""
        body = await read_body(request, TokenizeBody)
        tenant = tenant_of(request)
        card = core.model(tenant, body.model)
        token_ids = await core.tokenize(tenant, body.model, _prompt(body))
        return json_response({"tokens": token_ids, "count": len(token_ids), "max_model_len": card.context_length})

    @router.post("/v1/detokenize", openapi_extra=takes(DetokenizeBody) | gives(DetokenizeAnswer, READS))
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        body = await read_body(request, DetokenizeBody)
        text = await core.detokenize(tenant_of(request), body.model, tuple(body.tokens))
        return json_response({"text": text})

    return router


def _prompt(body: TokenizeBody) -> Prompt:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if body.messages is not None:
        return Prompt(messages=messages_of(body.messages))
    return Prompt(text=body.prompt)
