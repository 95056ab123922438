"""GET /v1/models and /v1/models/{id}."""

import time

from fastapi import APIRouter, Request, Response

from gemline.cluster.records import ModelCard
from gemline.errors import ModelNotAllowed, ModelNotFound
from gemline.gateway.http.answers import ModelAnswer, ModelList
from gemline.gateway.http.docs import gives
from gemline.gateway.http.interface import Core
from gemline.gateway.http.orders import tenant_of
from gemline.gateway.http.responses import json_response


def models_router(core: Core) -> APIRouter:
    """Which models there are."""
    router = APIRouter(tags=["models"])
    created_s = int(time.time())  # OpenAI's clients want a time; a model has none of its own

    @router.get("/v1/models", openapi_extra=gives(ModelList))
    async def list_models(request: Request) -> Response:
        """The models this key may use."""
        cards = core.models(tenant_of(request))
        return json_response({"object": "list", "data": [_model(card, created_s) for card in cards]})

    @router.get("/v1/models/{model_id:path}", openapi_extra=gives(ModelAnswer, (ModelNotAllowed, ModelNotFound)))
    async def retrieve_model(request: Request, model_id: str) -> Response:
        """One of them. Its id may have slashes, as on Hugging Face."""
        return json_response(_model(core.model(tenant_of(request), model_id), created_s))

    return router


def _model(card: ModelCard, created_s: int) -> dict[str, object]:
    return {
        "id": card.model_id,
        "object": "model",
        "created": created_s,
        "owned_by": "gemline",
        "max_model_len": card.context_length,
        "revision": card.revision,
        "dtype": card.dtype,
        "quantization": card.quantization,
        "kv_dtype": card.kv_dtype,
    }
