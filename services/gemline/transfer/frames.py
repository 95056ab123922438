"""KV frames on the wire: `u32 little-endian length | FrameHeader | payload`. Knows no engine and no socket."""

import struct
import zlib
from typing import NamedTuple

from google.protobuf.message import DecodeError

from gemline.errors import InternalError
from gemline.internal.v1.prefill_pb2 import FrameHeader, PrefillEnd
from gemline.internal.v1.prefill_pb2 import KvRange as KvRangeMessage

# The best size measured for gRPC: smaller frames pay per message, larger ones stall the event loop.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct("<I")


class TransferError(InternalError):
    """A stream of frames that cannot be trusted: damaged, out of order or incomplete."""


class KvRange(NamedTuple):
    """Keys and values of the positions [start, stop) of one layer."""

    layer: int
    start: int
    stop: int


class KvFrame(NamedTuple):
    """A range and its bytes: the keys then the values, each token-major (tokens, KV heads, head width)."""

    range: KvRange
    payload: memoryview


def encode_kv(kv: KvRange, payload: bytes | memoryview) -> bytes:
    """The frame of a range; its payload is copied once, into the result."""
    header = KvRangeMessage(
        layer=kv.layer, start=kv.start, stop=kv.stop, num_bytes=memoryview(payload).nbytes, crc32=zlib.crc32(payload)
    )
    return _join(FrameHeader(kv=header), payload)


def encode_end(end: PrefillEnd) -> bytes:
    """The last frame of a stream."""
    return _join(FrameHeader(end=end), b"")


def decode(frame: bytes) -> KvFrame | PrefillEnd:
    """What a frame holds; the payload is a view of `frame`. Raises TransferError when the frame is damaged."""
    view = memoryview(frame)
    header, payload = _split(view)
    match header.WhichOneof("kind"):
        case "kv":
            return _checked_kv(header.kv, payload)
        case "end" if payload.nbytes == 0:
            return header.end
        case "end":
            raise TransferError(f"the end frame carries {payload.nbytes} bytes of payload, expected 0")
        case _:
            raise TransferError("a frame says neither kv nor end")


def _join(header: FrameHeader, payload: bytes | memoryview) -> bytes:
    head = header.SerializeToString()
    return b"".join((_LENGTH.pack(len(head)), head, payload))


def _split(view: memoryview) -> tuple[FrameHeader, memoryview]:
    if view.nbytes < _LENGTH.size:
        raise TransferError(f"a frame of {view.nbytes} bytes is shorter than its length field of {_LENGTH.size}")
    stop = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    if stop > view.nbytes:
        raise TransferError(f"a frame of {view.nbytes} bytes announces a header that ends at byte {stop}")
    try:
        header = FrameHeader.FromString(bytes(view[_LENGTH.size : stop]))
    except DecodeError:
        raise TransferError("a frame's header cannot be parsed") from None
    return header, view[stop:]


def _checked_kv(kv: KvRangeMessage, payload: memoryview) -> KvFrame:
    if kv.start >= kv.stop:
        raise TransferError(f"a frame holds the empty range [{kv.start}, {kv.stop})")
    if payload.nbytes != kv.num_bytes:
        raise TransferError(f"a frame carries {payload.nbytes} bytes, its header says {kv.num_bytes}")
    if zlib.crc32(payload) != kv.crc32:
        raise TransferError(f"layer {kv.layer}, positions [{kv.start}, {kv.stop}): the checksum does not match")
    return KvFrame(KvRange(kv.layer, kv.start, kv.stop), payload)
