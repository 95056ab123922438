"""The checksum: the same for the same bytes, wherever they lie, and another for others."""

import os
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.transfer.checksum import checksum

ROW = 4096
sizes = st.integers(1, 3 * ROW + 20)


def by_hand(data: bytes) -> int:
    sums, stop = b"", len(data) // ROW * ROW
    for row in range(0, stop, ROW):
        words = struct.unpack_from("<512Q", data, row)
        sums += (sum((2 * i + 1) * word for i, word in enumerate(words)) % 2**64).to_bytes(8, "little")
    return zlib.crc32(sums + data[stop:])


@given(sizes, st.integers(0, 2**30))
def test_it_is_the_crc32_of_weighted_sums_and_the_rest(size: int, seed: int) -> None:
    data = random.Random(seed).randbytes(size)

    assert checksum(data) == by_hand(data)


@given(sizes, st.integers(0, 2**30), st.integers(0, 7))
def test_it_depends_on_the_bytes_and_not_on_where_they_lie(size: int, seed: int, offset: int) -> None:
    data = random.Random(seed).randbytes(size)

    assert checksum(memoryview(bytes(offset) + data)[offset:]) == checksum(data)


@given(sizes, st.integers(0, 2**30), st.data())
def test_a_flipped_bit_changes_it(size: int, seed: int, data: st.DataObject) -> None:
    payload = bytearray(random.Random(seed).randbytes(size))
    before, bit = checksum(payload), data.draw(st.integers(0, 8 * size - 1))
    payload[bit // 8] ^= 1 << bit % 8

    assert checksum(payload) != before


@pytest.mark.parametrize("size", [8, 16, 512, ROW, 2 * ROW])
def test_two_pieces_that_change_places_change_it(size: int) -> None:
    data = os.urandom(6 * ROW)
    for first in range(0, 2 * ROW, max(size, 200)):
        second = first + 2 * ROW
        swapped = data[:first] + data[second : second + size] + data[first + size : second] + data[first : first + size]
        swapped += data[second + size :]
        assert checksum(swapped) != checksum(data)


def test_zeros_of_different_lengths_differ() -> None:
    assert len({checksum(bytes(size)) for size in range(0, 3 * ROW, 100)}) == len(range(0, 3 * ROW, 100))
