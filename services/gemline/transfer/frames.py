"""KV frames on the wire: `u32 length | u32 crc32 | FrameHeader | payload`, little-endian. Knows no engine, no socket.

Length and crc32 are the header's, which in its turn has those of the payload.
"""

import struct
import zlib
from typing import NamedTuple

from google.protobuf.message import DecodeError

from gemline.errors import InternalError
from gemline.internal.v1 import prefill_pb2
from gemline.internal.v1.prefill_pb2 import FrameHeader
from gemline.transfer.checksum import Buffer, checksum
from gemline_kernels.scales import Scales

# The best size measured for gRPC: smaller frames pay per message, larger ones stall the event loop.
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
# A header of keys and values has some 50 bytes; those of an end and of its logprobs come over gRPC alone.
MAX_HEADER_BYTES = 1024

_PREFIX = struct.Struct("<II")
PREFIX_BYTES = _PREFIX.size

KvHeader = prefill_pb2.KvRange


class TransferError(InternalError):
    """A stream of frames that cannot be trusted: damaged, out of order or incomplete."""


class KvRange(NamedTuple):
    """Keys and values of the positions [start, stop) of one layer."""

    layer: int
    start: int
    stop: int


def seal(kv: KvRange, payload: Buffer, scales: Scales = Scales()) -> KvHeader:  # noqa: B008 - a tuple
    """The header that vouches for the payload. Reads all of it."""
    return KvHeader(
        layer=kv.layer,
        start=kv.start,
        stop=kv.stop,
        num_bytes=memoryview(payload).nbytes,
        checksum=checksum(payload),
        key_scale=scales.keys,
        value_scale=scales.values,
    )


def verify(header: KvHeader, payload: Buffer) -> None:
    """Raises TransferError when the payload is not the one that was sealed. Reads all of it."""
    if (size := memoryview(payload).nbytes) != header.num_bytes:
        raise TransferError(f"a frame carries {size} bytes, its header says {header.num_bytes}")
    if (found := checksum(payload)) != header.checksum:
        where = f"layer {header.layer}, positions [{header.start}, {header.stop})"
        raise TransferError(f"{where}: the checksum is {found:08x}, the header says {header.checksum:08x}")


def encode(header: FrameHeader, payload: Buffer = b"") -> bytes:
    """A whole frame; its payload is copied once, into the result."""
    return b"".join((encode_header(header), payload))


def encode_header(header: FrameHeader) -> bytes:
    """All of a frame but its payload."""
    head = header.SerializeToString()
    return _PREFIX.pack(len(head), zlib.crc32(head)) + head


def split(frame: bytes) -> tuple[FrameHeader, memoryview]:
    """A frame's header and its payload, which is a view of it. Raises TransferError when there is no such header."""
    view = memoryview(frame)
    if view.nbytes < PREFIX_BYTES:
        raise TransferError(f"a frame of {view.nbytes} bytes is shorter than the {PREFIX_BYTES} that begin one")
    stop = PREFIX_BYTES + header_size(view[:PREFIX_BYTES])
    if stop > view.nbytes:
        raise TransferError(f"a frame of {view.nbytes} bytes announces a header that ends at byte {stop}")
    header, payload = parse(view[:PREFIX_BYTES], view[PREFIX_BYTES:stop]), view[stop:]
    if payload.nbytes and header.WhichOneof("kind") != "kv":
        raise TransferError(f"a frame without keys and values carries {payload.nbytes} bytes of payload, expected 0")
    return header, payload


def header_size(prefix: Buffer) -> int:
    """How many bytes of header follow a frame's first `PREFIX_BYTES`."""
    size: int = _PREFIX.unpack(prefix)[0]
    return size


def parse(prefix: Buffer, head: Buffer) -> FrameHeader:
    """The header, which says of which kind it is. Raises TransferError when it is not the one that was sent."""
    if (found := zlib.crc32(head)) != (announced := _PREFIX.unpack(prefix)[1]):
        raise TransferError(f"a header's checksum is {found:08x}, {announced:08x} was announced")
    try:
        header = FrameHeader.FromString(bytes(head))
    except DecodeError:
        raise TransferError("a frame's header cannot be parsed") from None
    if header.WhichOneof("kind") is None:
        raise TransferError("a frame says neither kv nor end nor open")
    return header
