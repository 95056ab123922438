"""The admin key, or no answer: no path and no method is open without it. Pure ASGI."""

import hmac

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gemline.cluster.keys import digest_of
from gemline.errors import InvalidRequest, Unauthenticated
from gemline.gateway.admin.throttle import FailedLogins
from gemline.gateway.core import bearer_key

MAX_ACTOR = 100


class AdminCheck:
    """Leaves who acts, for the audit, in `scope["state"]`: "admin", and behind a colon what x-actor says."""

    def __init__(self, app: ASGIApp, admin_key: str) -> None:
        self._app = app
        self._digest = digest_of(admin_key) if admin_key else None
        self._failed_logins = FailedLogins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or raise Unauthenticated or RateLimited before anything of the body is read."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, _ = scope.get("client") or ("", 0)
            self._check(bearer_key(headers.get("authorization", "")), host)
            scope.setdefault("state", {})["actor"] = _actor(headers.get("x-actor", ""))
        await self._app(scope, receive, send)

    def _check(self, key: str | None, address: str) -> None:
        """Digests are compared, in constant time: the time it takes tells nothing about the key."""
        if key is None:
            raise Unauthenticated("no admin key: send the header `authorization: Bearer <key>`")
        self._failed_logins.check(address)
        if self._digest is None or not hmac.compare_digest(digest_of(key), self._digest):
            self._failed_logins.failed(address)
            raise Unauthenticated("this is not the admin key; a tenant's API key is for the public port alone")


def actor_of(request: Request) -> str:
    """Who acts, as the check left it."""
    return str(request.state.actor)


def _actor(given: str) -> str:
    if not given:
        return "admin"
    if len(given) > MAX_ACTOR or not given.isprintable():
        message = f"x-actor must have at most {MAX_ACTOR} characters, all printable; it has {len(given)}"
        raise InvalidRequest(message, param="x-actor")
    return f"admin:{given}"
