"""Stops a body that is too large while it is still coming in, before anything parses it. Pure ASGI."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemline.errors import RequestTooLarge


class BodyLimit:
    """Raises RequestTooLarge: at once by the announced length, else as soon as more bytes than that have come."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through with a `receive` that counts."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._check(_announced_bytes(scope), "has")
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            self._check(num_bytes, "has at least")
            return message

        return counted

    def _check(self, num_bytes: int, has: str) -> None:
        if num_bytes > self._limit_bytes:
            raise RequestTooLarge(f"the body {has} {num_bytes} bytes; at most {self._limit_bytes} are taken")


def _announced_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length[:20]) if length.isascii() and length.isdigit() else 0
