"""A stream of frames: exactly the needed positions travel, and nothing counts before all of them came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.transfer.frames import KvFrame, KvRange, TransferError, encode_kv
from gemline.transfer.receive import FrameReader
from gemline.transfer.send import FrameWriter, ranges_of_chunk

TOKEN_BYTES = 8
NEEDED = [range(6, 10), range(0, 10)]  # a local layer with a window of 5, then a global one


def payload_of(kv: KvRange) -> bytes:
    return bytes((kv.layer * 100 + position) % 256 for position in range(kv.start, kv.stop) for _ in range(TOKEN_BYTES))


def frames_of(needed: list[range], chunks: list[int], max_bytes: int = 1 << 20) -> list[bytes]:
    writer, frames, start = FrameWriter(), [], 0
    for stop in chunks:
        ranges = ranges_of_chunk(needed, start, stop, TOKEN_BYTES, max_bytes)
        frames += [writer.kv(kv, payload_of(kv)) for kv in ranges]
        start = stop
    return [*frames, writer.end(token_id=42, logprobs=None)]


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

    for data in frames_of(needed, chunks, max_bytes):
        frame = reader.read(data)
        if frame is not None:
            seen[frame.range.layer] += range(frame.range.start, frame.range.stop)
            assert bytes(frame.payload) == payload_of(frame.range)
            assert frame.payload.nbytes <= max(max_bytes, TOKEN_BYTES)

    assert seen == [list(wanted) for wanted in needed]
    assert reader.end is not None
    assert reader.end.token_id == 42
    assert reader.num_bytes == TOKEN_BYTES * sum(len(wanted) for wanted in needed)


def test_a_local_layer_sends_only_its_last_window() -> None:
    chunks = [list(ranges_of_chunk(NEEDED, start, start + 5, TOKEN_BYTES)) for start in (0, 5)]

    assert chunks == [[KvRange(1, 0, 5)], [KvRange(0, 6, 10), KvRange(1, 5, 10)]]


@given(transfers(), st.data())
def test_a_stream_without_one_of_its_frames_is_refused(
    transfer: tuple[list[range], list[int], int], data: st.DataObject
) -> None:
    needed, chunks, max_bytes = transfer
    frames = frames_of(needed, chunks, max_bytes)
    del frames[data.draw(st.integers(0, len(frames) - 1))]
    reader = FrameReader(needed, TOKEN_BYTES)

    try:
        for frame in frames:
            reader.read(frame)
    except TransferError:
        pass
    assert reader.end is None


def test_a_frame_that_comes_twice_is_refused() -> None:
    reader = FrameReader(NEEDED, TOKEN_BYTES)
    first = frames_of(NEEDED, [10])[0]
    reader.read(first)

    with pytest.raises(TransferError, match="is missing"):
        reader.read(first)


def test_a_frame_after_the_end_is_refused() -> None:
    reader = FrameReader(NEEDED, TOKEN_BYTES)
    frames = frames_of(NEEDED, [10])
    for frame in frames:
        reader.read(frame)

    with pytest.raises(TransferError, match="follows the end"):
        reader.read(frames[-1])


@pytest.mark.parametrize(
    ("kv", "size", "message"),
    [
        (KvRange(2, 0, 1), 8, "layer 2 of a model with 2 layers"),
        (KvRange(0, 6, 11), 40, "came where"),
        (KvRange(0, 5, 7), 16, "came where"),
        (KvRange(1, 0, 2), 15, "15 bytes came, expected 16"),
    ],
)
def test_a_range_that_was_not_asked_for_is_refused(kv: KvRange, size: int, message: str) -> None:
    reader = FrameReader(NEEDED, TOKEN_BYTES)

    with pytest.raises(TransferError, match=message):
        reader.read(encode_kv(kv, bytes(size)))


def test_an_end_that_counts_other_frames_is_refused() -> None:
    frames = frames_of(NEEDED, [10])
    reader = FrameReader(NEEDED, TOKEN_BYTES)
    for frame in frames[:-1]:
        assert isinstance(reader.read(frame), KvFrame)

    with pytest.raises(TransferError, match="were sent"):
        reader.read(FrameWriter().end(token_id=42, logprobs=None))
    assert reader.end is None
