"""No key, no answer: every path and method is closed but the three probes. Pure ASGI."""

import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemline.errors import GemlineError
from gemline.gateway.core import bearer_key
from gemline.gateway.http.interface import Core
from gemline.gateway.requests import Tenant

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
OPEN_METHODS = frozenset({"GET", "HEAD"})


class KeyCheck:
    """Asks the core whose key a request carries before its body is read, and counts it before anything is done for it.

    One that asks for tokens may be counted with what it reserves of them; none is done without that. The tenant is left
    in `scope["state"]`.
    """

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through with a tenant, or raise Unauthenticated, Forbidden or RateLimited."""
        if scope["type"] == "http" and not _is_open(scope):
            tenant = await self._core.authenticate(bearer_key(Headers(scope=scope).get("authorization", "")))
            scope.setdefault("state", {})["tenant"] = tenant
            if _asks_for_tokens(scope):
                await self._core.meet(tenant)
                return await self._counted(tenant, scope, receive, send)
            await self._core.count(tenant)
        await self._app(scope, receive, send)

    async def _counted(self, tenant: Tenant, scope: Scope, receive: Receive, send: Send) -> None:
        """What fails before it reserves any counts too, and what its client gave up; it fails as it did."""

        async def count_first(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._core.count(tenant)
            await send(message)

        try:
            await self._app(scope, receive, count_first)
        finally:
            with contextlib.suppress(GemlineError):
                await self._core.count(tenant)


def _asks_for_tokens(scope: Scope) -> bool:
    return scope["method"] == "POST" and str(scope["path"]).endswith("/completions")


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS and scope["method"] in OPEN_METHODS
