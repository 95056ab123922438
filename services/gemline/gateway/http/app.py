"""Puts the HTTP front together: its layers from the outside in, then its routes."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import gemline
from gemline.cluster.idempotency import IdempotencyStore
from gemline.gateway.http.boundary import Boundary
from gemline.gateway.http.chat import chat_router
from gemline.gateway.http.completions import completions_router
from gemline.gateway.http.document import complete_document
from gemline.gateway.http.documents import documents_router
from gemline.gateway.http.errors import on_http_exception
from gemline.gateway.http.idempotency import Idempotency
from gemline.gateway.http.interface import Core
from gemline.gateway.http.keys import KeyCheck
from gemline.gateway.http.limits import BodyLimit
from gemline.gateway.http.models import models_router
from gemline.gateway.http.probes import probes_router
from gemline.gateway.http.public_document import ABOUT, PUBLIC
from gemline.gateway.http.sessions import sessions_router
from gemline.gateway.http.tokens import tokens_router
from gemline.gateway.settings import GatewaySettings


def create_app(gateway: Core, settings: GatewaySettings, answers: IdempotencyStore | None = None) -> FastAPI:
    """The ASGI application; whoever serves it also starts and stops the gateway.

    `answers` keeps those of requests with an Idempotency-Key; without it the header is ignored.
    """
    app = FastAPI(
        title="gemline",
        summary="Gemma 2 for many tenants, in the words of OpenAI's API.",
        description=ABOUT,
        version=gemline.__version__,
        openapi_url=None,  # and no page of FastAPI's: it loads its scripts from elsewhere, and sends no key
        redirect_slashes=False,
        middleware=[
            Middleware(Boundary),
            Middleware(KeyCheck, gateway),
            Middleware(BodyLimit, settings.body_limit_bytes),
            Middleware(Idempotency, answers),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    for router in (chat_router, completions_router, sessions_router, models_router, tokens_router, probes_router):
        app.include_router(router(gateway))
    app.include_router(documents_router(app))
    complete_document(app, PUBLIC)
    return app
