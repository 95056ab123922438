"""Frames: what is encoded is decoded, and damage of any kind is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.internal.v1.prefill_pb2 import FrameHeader, PrefillEnd
from gemline.internal.v1.sampling_pb2 import Logprobs
from gemline.transfer.frames import KvRange, TransferError, encode, seal, split, verify
from gemline_kernels.scales import Scales

positions = st.integers(0, 2**20)
ranges = st.builds(
    lambda layer, start, size: KvRange(layer, start, start + size), positions, positions, st.integers(1, 99)
)


def frame_of(kv: KvRange, payload: bytes) -> bytes:
    return encode(FrameHeader(kv=seal(kv, payload)), payload)


def verify_whole(frame: bytes) -> None:
    header, payload = split(frame)
    verify(header.kv, payload)


@given(ranges, st.binary(max_size=300))
def test_a_kv_frame_is_read_back(kv: KvRange, payload: bytes) -> None:
    header, found = split(encode(FrameHeader(kv=seal(kv, payload, Scales(0.5, 0.25))), payload))

    verify(header.kv, found)
    assert KvRange(header.kv.layer, header.kv.start, header.kv.stop) == kv
    assert (header.kv.key_scale, header.kv.value_scale) == (0.5, 0.25)
    assert bytes(found) == payload


def test_the_payload_is_a_view_of_the_frame() -> None:
    data = frame_of(KvRange(0, 0, 1), b"k" * 100)

    assert split(data)[1].obj is data


def test_an_end_frame_is_read_back() -> None:
    end = PrefillEnd(token_id=7, logprobs=Logprobs(token_ids=[7, 3], values=[-0.5, -1.5]), num_frames=3, num_bytes=12)

    assert split(encode(FrameHeader(end=end)))[0].end == end


@given(ranges, st.binary(min_size=1, max_size=60), st.data())
def test_no_flipped_bit_goes_unnoticed(kv: KvRange, payload: bytes, data: st.DataObject) -> None:
    damaged = bytearray(frame_of(kv, payload))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TransferError):
        verify_whole(bytes(damaged))


@given(ranges, st.binary(min_size=1, max_size=60), st.data())
def test_a_cut_frame_is_refused(kv: KvRange, payload: bytes, data: st.DataObject) -> None:
    whole = frame_of(kv, payload)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    with pytest.raises(TransferError):
        verify_whole(cut)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        split(data)
    except TransferError as error:
        assert error.code == "internal_error"


def test_an_end_frame_with_a_payload_is_refused() -> None:
    with pytest.raises(TransferError, match="5 bytes of payload"):
        split(encode(FrameHeader(end=PrefillEnd(token_id=1)), b"extra"))


def test_a_header_that_says_nothing_is_refused() -> None:
    with pytest.raises(TransferError, match="neither kv nor end nor open"):
        split(encode(FrameHeader()))


@given(st.integers(0, 2**20), st.data())
def test_no_flipped_bit_of_an_end_frame_goes_unnoticed(token_id: int, data: st.DataObject) -> None:
    damaged = bytearray(encode(FrameHeader(end=PrefillEnd(token_id=token_id, num_frames=3, tokens_per_s=2.5))))
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8

    with pytest.raises(TransferError):
        split(bytes(damaged))
