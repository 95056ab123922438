"""Hostile connections for the public gRPC port, as bytes to write: broken HTTP/2, floods, calls that go no further."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence

from support.grpc_fuzz import METHODS, path_of

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS = 1, 4
_CANCEL = struct.pack(">I", 8)

Pieces = Sequence[bytes]


def connections(seed: int, number: int, key: str) -> Iterator[Pieces]:
    """What to write to each of so many connections, piece by piece; what then comes is up to the server."""
    rng = random.Random(seed)
    for _ in range(number):
        call = _call_headers(path_of(rng.choice(METHODS)), key)
        yield rng.choice(_KINDS)(rng, call)


def _noise(rng: random.Random, call: bytes) -> Pieces:
    return [rng.randbytes(rng.choice((1, 24, 500, 100_000)))]


def _half_a_preface(rng: random.Random, call: bytes) -> Pieces:
    return [_PREFACE[: rng.randrange(len(_PREFACE))]]


def _http_1(rng: random.Random, call: bytes) -> Pieces:
    return [b"POST /gemline.v1.Inference/Chat HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"]


def _any_frames(rng: random.Random, call: bytes) -> Pieces:
    frames = [
        _frame(rng.randrange(12), rng.randrange(256), rng.randrange(9), rng.randbytes(rng.randrange(64)))
        for _ in range(50)
    ]
    return _opened(*frames)


def _truncated(rng: random.Random, call: bytes) -> Pieces:
    frame = _frame(_HEADERS, _END_HEADERS, 1, call)
    return _opened(frame[: rng.randrange(len(frame))])


def _too_long(rng: random.Random, call: bytes) -> Pieces:
    return _opened(b"\xff\xff\xff" + _frame(_DATA, 0, 1, rng.randbytes(1000))[3:])


def _endless_headers(rng: random.Random, call: bytes) -> Pieces:
    more = _frame(_CONTINUATION, 0, 1, b"\0\x01x" + b"\x7f\x00" + b"a" * 127)
    return _opened(_frame(_HEADERS, 0, 1, call), *[more] * 300)


def _reset_at_once(rng: random.Random, call: bytes) -> Pieces:
    ids = range(1, 1001, 2)
    return _opened(b"".join(_frame(_HEADERS, _END_HEADERS, one, call) + _frame(_RST, 0, one, _CANCEL) for one in ids))


def _flood(rng: random.Random, call: bytes) -> Pieces:
    return _opened(_frame(_PING, 0, 0, b"x" * 8) * 500 + _frame(_SETTINGS, 0, 0, b"") * 500)


def _wrong_message(rng: random.Random, call: bytes) -> Pieces:
    """One that says it is long, or compressed, and is not."""
    length = struct.pack(">I", rng.choice((0, 5, 2**20, 2**31, 2**32 - 1)))
    data = bytes((rng.randrange(256),)) + length + rng.randbytes(5)
    return _opened(_frame(_HEADERS, _END_HEADERS, 1, call), _frame(_DATA, _END_STREAM, 1, data))


def _half_open(rng: random.Random, call: bytes) -> Pieces:
    return _opened(*(_frame(_HEADERS, _END_HEADERS, one, call) for one in range(1, 41, 2)))


def _impossible(rng: random.Random, call: bytes) -> Pieces:
    """Windows and streams that cannot be."""
    window = _frame(_WINDOW, 0, 0, b"\x7f\xff\xff\xff")
    return _opened(window * 2, _frame(_DATA, 0, 2, b"x"), _frame(_GOAWAY, 0, 0, b""))


_KINDS: tuple[Callable[[random.Random, bytes], Pieces], ...] = (
    *(_noise, _half_a_preface, _http_1, _any_frames, _truncated, _too_long, _endless_headers, _reset_at_once),
    *(_flood, _wrong_message, _half_open, _impossible),
)


def _opened(*frames: bytes) -> Pieces:
    return [_PREFACE + _frame(_SETTINGS, 0, 0, b""), *frames]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _call_headers(path: str, key: str) -> bytes:
    """A block of HPACK: literals alone, none indexed, none Huffman-coded."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {key}",
    }
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields.items())


def _literal(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127, "a longer length takes several bytes"
    return bytes((len(data),)) + data
