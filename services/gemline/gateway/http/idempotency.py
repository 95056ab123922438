"""A POST with an Idempotency-Key is done once: sent again within ten minutes it gets the first answer. Pure ASGI."""

import asyncio
import contextlib
import hashlib
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemline.cluster.idempotency import RUNNING_S, IdempotencyStore, Kept
from gemline.errors import Conflict, GemlineError, InvalidRequest
from gemline.gateway.requests import Tenant

MAX_KEY = 255
MAX_ANSWER_BYTES = 2**20  # a longer answer is not kept: the second request is told so
_KEPT_HEADERS = {"content-type", "cache-control"}

log = logging.getLogger(__name__)


class Idempotency:
    """Stands behind the key check: keys are a tenant's own. Answers of 429 and 5xx are not kept, nor broken ones."""

    def __init__(self, app: ASGIApp, store: IdempotencyStore | None) -> None:
        """Without a store the header is ignored."""
        self._app = app
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or answer again. Raises Conflict while the first one runs, InvalidRequest for another body."""
        key = Headers(scope=scope).get("idempotency-key", "") if scope["type"] == "http" else ""
        tenant: Tenant | None = scope.get("state", {}).get("tenant")
        if not key or self._store is None or tenant is None or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if len(key) > MAX_KEY:
            raise InvalidRequest(f"Idempotency-Key has {len(key)} characters, over {MAX_KEY}", param="Idempotency-Key")
        body = await _body_of(receive)
        fingerprint = hashlib.sha256(scope["path"].encode() + b"\0" + body).hexdigest()
        kept = await self._store.begin(tenant.tenant_id, key, fingerprint)
        if kept is not None:
            return await _answer_again(kept, fingerprint, send)
        await self._run(self._store, tenant.tenant_id, key, fingerprint, (scope, _again(body, receive), send))

    async def _run(
        self, store: IdempotencyStore, tenant_id: str, key: str, fingerprint: str, call: tuple[Scope, Receive, Send]
    ) -> None:
        scope, receive, send = call
        copy = _Copy(send)
        renewing = asyncio.create_task(_renew(store, tenant_id, key), name="idempotency key")
        is_whole = False
        try:
            await self._app(scope, receive, copy)
            is_whole = copy.is_whole
        finally:
            renewing.cancel()
            with contextlib.suppress(GemlineError):
                if is_whole:
                    kept = Kept(fingerprint, False, copy.status, tuple(copy.headers), copy.body)
                    await store.finish(tenant_id, key, kept)
                else:
                    await store.forget(tenant_id, key)


class _Copy:
    """Passes an answer on and remembers it, as far as it is not too long."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body: bytes | None = b""
        self._last = b""  # what came last
        self._has_ended = False

    @property
    def is_whole(self) -> bool:
        """Whether it came to a good end: no fault of ours, no limit, no stream that ends with an error's event."""
        is_good = self.status < 500 and self.status != 429
        return self._has_ended and is_good and not self._last.startswith(b'data: {"error":')

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ()))
            self.headers = [(name, value) for name, value in pairs if name in _KEPT_HEADERS]
        elif message["type"] == "http.response.body":
            if self.body is not None:
                self.body += message.get("body", b"")
                if len(self.body) > MAX_ANSWER_BYTES:
                    self.body = None
            self._last = message.get("body", b"")
            self._has_ended = not message.get("more_body", False)
        await self._send(message)


async def _body_of(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise InvalidRequest("the request ended before its body did")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever else comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def _answer_again(kept: Kept, fingerprint: str, send: Send) -> None:
    if kept.fingerprint != fingerprint:
        raise InvalidRequest("this Idempotency-Key was used for another request", param="Idempotency-Key")
    if kept.is_running:
        raise Conflict("a request with this Idempotency-Key is being answered now")
    if kept.body is None:
        raise Conflict(f"its answer was given, and was too long to be kept: over {MAX_ANSWER_BYTES} bytes")
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept.headers]
    headers.append((b"idempotent-replayed", b"true"))
    await send({"type": "http.response.start", "status": kept.status, "headers": headers})
    await send({"type": "http.response.body", "body": kept.body, "more_body": False})


async def _renew(store: IdempotencyStore, tenant_id: str, key: str) -> None:
    while True:
        await asyncio.sleep(RUNNING_S / 3)
        try:
            await store.renew(tenant_id, key)
        except GemlineError as error:
            log.warning("an idempotency key cannot be renewed: %s", error)
