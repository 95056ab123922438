"""The outermost layer of the HTTP front: names every request and lets no exception out. Pure ASGI."""

import logging
import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemline.errors import GemlineError, InternalError
from gemline.gateway.core import new_request_id
from gemline.gateway.http.errors import error_response
from gemline.gateway.requests import Tenant

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")
_log = logging.getLogger(__name__)


class Boundary:
    """Gives each request our id, in `scope["state"]` and as a header; turns what is raised below into an answer.

    The state also has the time of its arrival, of the monotonic clock, as `arrived_s`.

    A client's own x-request-id is a label only: it comes back as x-client-request-id and goes nowhere else. What is
    answered to a key tells how its limits stand.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, come what may."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, arrived_s=time.monotonic())
        sender = _Sender(send, scope, _id_headers(scope, request_id))
        try:
            await self._app(scope, receive, sender)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            if not isinstance(error, GemlineError):
                _log.exception("request %s failed", request_id)
            if sender.started:
                raise
            await error_response(_for_user(error, request_id))(scope, receive, sender)


class _Sender:
    """Passes an answer on, with headers added to its start."""

    def __init__(self, send: Send, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._scope = scope
        self._headers = headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if not self.started and message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *self._headers, *_limit_headers(self._scope)]
        await self._send(message)


def _limit_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    tenant: Tenant | None = scope["state"].get("tenant")
    return [] if tenant is None else [(name.encode(), value.encode()) for name, value in tenant.standing.headers()]


def _id_headers(scope: Scope, request_id: str) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", request_id.encode())]
    client_id = Headers(scope=scope).get("x-request-id", "")
    if _CLIENT_ID.fullmatch(client_id):
        headers.append((b"x-client-request-id", client_id.encode()))
    return headers


def _for_user(error: Exception, request_id: str) -> GemlineError:
    return error if isinstance(error, GemlineError) else internal_error(request_id)


def internal_error(request_id: str) -> InternalError:
    """What a user is told of a fault of ours: the name under which our log has the rest."""
    return InternalError(f"something went wrong on our side; the request was {request_id}")
