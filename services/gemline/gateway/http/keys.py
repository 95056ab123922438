"""No key, no answer: every path and method is closed but the three probes. Pure ASGI."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gemline.gateway.core import bearer_key
from gemline.gateway.http.interface import Core

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
OPEN_METHODS = frozenset({"GET", "HEAD"})


class KeyCheck:
    """Asks the core whose key a request carries, and counts the request, before its body is read.

    The tenant is left in `scope["state"]`.
    """

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through with a tenant, or raise Unauthenticated, Forbidden or RateLimited."""
        if scope["type"] == "http" and not _is_open(scope):
            tenant = await self._core.authenticate(bearer_key(Headers(scope=scope).get("authorization", "")))
            scope.setdefault("state", {})["tenant"] = tenant
            await self._core.count(tenant)
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS and scope["method"] in OPEN_METHODS
