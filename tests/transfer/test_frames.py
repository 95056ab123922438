"""Frames: what is encoded is decoded, and damage of any kind is noticed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.internal.v1.prefill_pb2 import FrameHeader, PrefillEnd
from gemline.internal.v1.sampling_pb2 import Logprobs
from gemline.transfer.frames import KvFrame, KvRange, TransferError, decode, encode_end, encode_kv

positions = st.integers(0, 2**20)
ranges = st.builds(
    lambda layer, start, size: KvRange(layer, start, start + size), positions, positions, st.integers(1, 99)
)


@given(ranges, st.binary(max_size=300))
def test_a_kv_frame_is_read_back(kv: KvRange, payload: bytes) -> None:
    frame = decode(encode_kv(kv, payload))

    assert isinstance(frame, KvFrame)
    assert frame.range == kv
    assert bytes(frame.payload) == payload


def test_the_payload_is_a_view_of_the_frame() -> None:
    data = encode_kv(KvRange(0, 0, 1), b"k" * 100)

    frame = decode(data)

    assert isinstance(frame, KvFrame)
    assert frame.payload.obj is data


def test_an_end_frame_is_read_back() -> None:
    end = PrefillEnd(token_id=7, logprobs=Logprobs(token_ids=[7, 3], values=[-0.5, -1.5]), num_frames=3, num_bytes=12)

    assert decode(encode_end(end)) == end


@given(ranges, st.binary(min_size=1, max_size=60), st.data())
def test_no_flipped_bit_changes_what_is_read(kv: KvRange, payload: bytes, data: st.DataObject) -> None:
    damaged = bytearray(encode_kv(kv, payload))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        frame = decode(bytes(damaged))
    except TransferError:
        return
    # A flip inside the header's numbers may give another valid range: the receiver's order check refuses that one.
    assert isinstance(frame, PrefillEnd) or frame.range != kv or bytes(frame.payload) == payload


@given(ranges, st.binary(min_size=1, max_size=60), st.data())
def test_a_cut_frame_is_refused(kv: KvRange, payload: bytes, data: st.DataObject) -> None:
    whole = encode_kv(kv, payload)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    with pytest.raises(TransferError):
        decode(cut)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        decode(data)
    except TransferError as error:
        assert error.code == "internal_error"


def test_an_end_frame_with_a_payload_is_refused() -> None:
    with pytest.raises(TransferError, match="5 bytes of payload"):
        decode(encode_end(PrefillEnd(token_id=1)) + b"extra")


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(TransferError, match="empty range"):
        decode(encode_kv(KvRange(0, 4, 4), b""))


def test_a_header_that_says_nothing_is_refused() -> None:
    head = FrameHeader().SerializeToString()

    with pytest.raises(TransferError, match="neither kv nor end"):
        decode(struct.pack("<I", len(head)) + head)
