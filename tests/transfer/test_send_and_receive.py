"""A stream of frames: exactly the needed positions travel, and nothing counts before all of them came."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.transfer.frames import KvHeader, KvRange, TransferError
from gemline.transfer.receive import FrameReader
from gemline.transfer.send import ranges_of_chunk

TOKEN_BYTES = 8
NEEDED = [range(6, 10), range(0, 10)]  # a local layer with a window of 5, then a global one


def header_of(kv: KvRange, num_bytes: int | None = None) -> KvHeader:
    size = (kv.stop - kv.start) * TOKEN_BYTES if num_bytes is None else num_bytes
    return KvHeader(layer=kv.layer, start=kv.start, stop=kv.stop, num_bytes=size)


def stream_of(needed: list[range], chunks: list[int], max_bytes: int = 1 << 20) -> list[KvHeader | PrefillEnd]:
    headers: list[KvHeader] = []
    start = 0
    for stop in chunks:
        headers += map(header_of, ranges_of_chunk(needed, start, stop, TOKEN_BYTES, max_bytes))
        start = stop
    end = PrefillEnd(token_id=42, num_frames=len(headers), num_bytes=sum(header.num_bytes for header in headers))
    return [*headers, end]


def read(reader: FrameReader, frame: KvHeader | PrefillEnd) -> KvRange | None:
    if isinstance(frame, KvHeader):
        return reader.accept(frame)
    reader.finish(frame)
    return None


@st.composite
def transfers(draw: st.DrawFn) -> tuple[list[range], list[int], int]:
    num_tokens = draw(st.integers(1, 60))
    window = draw(st.integers(1, 70))
    local, everything = range(max(0, num_tokens - window + 1), num_tokens), range(num_tokens)
    needed = [local if draw(st.booleans()) else everything for _ in range(draw(st.integers(1, 4)))]
    inner = draw(st.sets(st.integers(1, num_tokens)))
    return needed, sorted(inner | {num_tokens}), draw(st.integers(1, 200))


@given(transfers())
def test_every_needed_position_travels_exactly_once(transfer: tuple[list[range], list[int], int]) -> None:
    needed, chunks, max_bytes = transfer
    reader = FrameReader(needed, TOKEN_BYTES)
    seen: list[list[int]] = [[] for _ in needed]

    for frame in stream_of(needed, chunks, max_bytes):
        assert reader.is_complete or isinstance(frame, KvHeader)
        if (kv := read(reader, frame)) is not None:
            seen[kv.layer] += range(kv.start, kv.stop)
            assert (kv.stop - kv.start) * TOKEN_BYTES <= max(max_bytes, TOKEN_BYTES)

    assert seen == [list(wanted) for wanted in needed]
    assert reader.end is not None
    assert reader.end.token_id == 42
    assert reader.num_bytes == TOKEN_BYTES * sum(len(wanted) for wanted in needed)


def test_a_local_layer_sends_only_its_last_window() -> None:
    chunks = [list(ranges_of_chunk(NEEDED, start, start + 5, TOKEN_BYTES)) for start in (0, 5)]

    assert chunks == [[KvRange(1, 0, 5)], [KvRange(0, 6, 10), KvRange(1, 5, 10)]]


def test_a_chunk_is_sent_layer_by_layer() -> None:
    layers = [kv.layer for kv in ranges_of_chunk([range(100)] * 5, 10, 90, TOKEN_BYTES, max_bytes=100)]

    assert layers == sorted(layers)


@given(transfers(), st.data())
def test_a_stream_without_one_of_its_frames_is_refused(
    transfer: tuple[list[range], list[int], int], data: st.DataObject
) -> None:
    needed, chunks, max_bytes = transfer
    frames = stream_of(needed, chunks, max_bytes)
    del frames[data.draw(st.integers(0, len(frames) - 1))]
    reader = FrameReader(needed, TOKEN_BYTES)

    try:
        for frame in frames:
            read(reader, frame)
    except TransferError:
        pass
    assert reader.end is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frames: [frames[0], *frames], "is missing"),
        (lambda frames: [*frames, frames[0]], "after the end frame"),
        (lambda frames: [*frames, frames[-1]], "second end frame"),
        (lambda frames: [*frames[:-1], PrefillEnd(token_id=42)], "0 of 0 were sent"),
    ],
    ids=["twice", "after the end", "two ends", "another count"],
)
def test_a_stream_that_is_not_just_what_was_sent_is_refused(
    spoil: Callable[[list[KvHeader | PrefillEnd]], list[KvHeader | PrefillEnd]], message: str
) -> None:
    reader = FrameReader(NEEDED, TOKEN_BYTES)

    with pytest.raises(TransferError, match=message):
        for frame in spoil(stream_of(NEEDED, [10])):
            read(reader, frame)


@pytest.mark.parametrize(
    ("kv", "size", "message"),
    [
        (KvRange(2, 0, 1), 8, "layer 2 of a model with 2 layers"),
        (KvRange(0, 6, 11), 40, "came where"),
        (KvRange(0, 5, 7), 16, "came where"),
        (KvRange(1, 0, 2), 15, "15 bytes came, expected 16"),
        (KvRange(1, 4, 4), 0, r"\[4, 4\) is empty"),
    ],
)
def test_a_range_that_was_not_asked_for_is_refused(kv: KvRange, size: int, message: str) -> None:
    reader = FrameReader(NEEDED, TOKEN_BYTES)

    with pytest.raises(TransferError, match=message):
        reader.accept(header_of(kv, size))
