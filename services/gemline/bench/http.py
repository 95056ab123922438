"""HTTP/1.1 as far as a load generator needs it: one request a connection, on asyncio streams. Knows no API."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from gemline.errors import ConfigurationError, Unavailable

_READ_SIZE = 1 << 16
_MAX_LINE = 1 << 16
_MAX_ERROR_BODY = 1 << 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: an http(s) URL in parts, with the path before `/v1`."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """From http://HOST[:PORT][/PATH][/v1]; raises ConfigurationError naming --url."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"--url {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"--url {url!r}: write http://HOST:PORT or https://HOST")
        if parts.username or parts.query or any(char.isspace() or not char.isascii() for char in url):
            raise ConfigurationError(f"--url {url!r}: no user, query, spaces or letters beyond ASCII; see --api-key")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), path, tls)

    @property
    def address(self) -> str:
        """HOST:PORT, as errors and the Host header have it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Response:
    """An answer whose body is still to come."""

    status: int
    headers: dict[str, str]  # names in lower case
    _reader: asyncio.StreamReader

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Unavailable when it breaks off."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            body = self._chunks()
        elif "content-length" in self.headers:
            body = self._counted(_number(self.headers["content-length"], 10))
        else:
            body = self._rest()
        async for block in body:
            yield block

    async def read(self) -> bytes:
        """The whole body, or as much as an error message needs."""
        body = b""
        async for block in self.blocks():
            body += block
            if len(body) > _MAX_ERROR_BODY and self.status != 200:
                break
        return body

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := _number((await self._reader.readuntil(b"\n")).split(b";")[0].decode("latin-1"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readuntil(b"\n")

    async def _counted(self, size: int) -> AsyncIterator[bytes]:
        while size:
            block = await self._reader.read(min(size, _READ_SIZE))
            if not block:
                raise Unavailable("the server closed the connection in the middle of its answer")
            size -= len(block)
            yield block

    async def _rest(self) -> AsyncIterator[bytes]:
        while block := await self._reader.read(_READ_SIZE):
            yield block


@asynccontextmanager
async def send(
    origin: Origin, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> AsyncIterator[Response]:
    """Send a request and give its answer once the head is there. Raises Unavailable for whatever the wire does."""
    try:
        reader, writer = await asyncio.open_connection(origin.host, origin.port, ssl=origin.tls, limit=_MAX_LINE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Unavailable(f"{origin.address} cannot be reached: {reason or error}") from None
    try:
        writer.write(_head(origin, method, path, headers, len(body)) + body)
        await writer.drain()
        yield await _response(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Unavailable("the server closed the connection in the middle of its answer") from None
    except (asyncio.LimitOverrunError, ssl.SSLError, OSError) as error:
        raise Unavailable(f"the connection broke: {error}") from None
    finally:
        writer.transport.abort()


def _head(origin: Origin, method: str, path: str, headers: dict[str, str], size: int) -> bytes:
    fields = {"Host": origin.address, "Connection": "close", "Content-Length": str(size), **headers}
    lines = [f"{method} {origin.path}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _response(reader: asyncio.StreamReader) -> Response:
    start = (await reader.readuntil(b"\n")).decode("latin-1").split(maxsplit=2)
    if len(start) < 2 or not start[0].startswith("HTTP/1."):
        raise Unavailable("what answers there does not speak HTTP/1.1")
    headers: dict[str, str] = {}
    while line := (await reader.readuntil(b"\n")).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Response(_number(start[1], 10), headers, reader)


def _number(text: str, base: int) -> int:
    try:
        value = int(text.strip(), base)
    except ValueError:
        value = -1
    if value < 0:
        raise Unavailable("what answers there does not speak HTTP/1.1")
    return value
