"""Names of blocks: equal only for the same tokens after the same tokens of the same tenant on the same weights."""

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.block_hash import Roots, extend_hashes, root_hash

IDS = st.lists(st.integers(0, 2**31), max_size=40)


def hashes_of(token_ids: list[int], block_size: int, roots: Roots) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, roots, token_ids, block_size, len(token_ids) // block_size)
    return hashes


def test_a_hash_is_sha256_over_the_one_before_and_the_ids_in_little_endian() -> None:
    root = root_hash("rev", b"salt")
    assert root == sha256(b"\x03\0\0\0\0\0\0\0revsalt").digest()
    first = sha256(root + b"\x01\0\0\0\x02\x01\0\0").digest()
    second = sha256(first + b"\x03\0\0\0\xff\xff\0\0").digest()
    assert hashes_of([1, 258, 3, 65535, 9], 2, Roots.of("rev", b"salt")) == [first, second]


@given(st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), unique=True, min_size=2, max_size=5))
def test_no_two_tenants_and_no_two_models_share_a_root(pairs: list[tuple[str, bytes]]) -> None:
    assert len({root_hash(revision, salt) for revision, salt in pairs}) == len(pairs)


@given(IDS, IDS, st.integers(1, 4))
def test_hashes_are_equal_as_far_as_the_texts_are(one: list[int], two: list[int], block_size: int) -> None:
    roots = Roots.of("rev", b"salt")
    for index, (a, b) in enumerate(
        zip(hashes_of(one, block_size, roots), hashes_of(two, block_size, roots), strict=False)
    ):
        stop = (index + 1) * block_size
        assert (a == b) == (one[:stop] == two[:stop])


@given(IDS, st.integers(1, 4), st.lists(st.integers(0, 12), max_size=4))
def test_hashing_in_steps_is_hashing_at_once(token_ids: list[int], block_size: int, steps: list[int]) -> None:
    roots, hashes = Roots.of("rev", b"salt"), list[bytes]()
    for num_blocks in (*sorted(steps), len(token_ids)):
        extend_hashes(hashes, roots, token_ids, block_size, min(num_blocks, len(token_ids) // block_size))
    assert hashes == hashes_of(token_ids, block_size, roots)


def test_public_blocks_begin_at_the_empty_salts_root_and_the_tenants_root_goes_in_behind_them() -> None:
    public = sha256(b"\x03\0\0\0\0\0\0\0rev").digest()
    first = sha256(public + b"\x01\0\0\0").digest()
    second = sha256(sha256(first + root_hash("rev", b"salt")).digest() + b"\x02\0\0\0").digest()
    third = sha256(second + b"\x03\0\0\0").digest()
    assert hashes_of([1, 2, 3], 1, Roots.of("rev", b"salt", 1)) == [first, second, third]


@given(IDS, st.integers(1, 4), st.integers(0, 12))
def test_tenants_share_the_public_blocks_and_none_behind_them(
    token_ids: list[int], block_size: int, num_public: int
) -> None:
    one, other = (hashes_of(token_ids, block_size, Roots.of("rev", salt, num_public)) for salt in (b"a", b"b"))
    assert one[:num_public] == other[:num_public]
    assert not set(one[num_public:]) & set(other[num_public:])
    assert set(one[num_public:]).isdisjoint(hashes_of(token_ids, block_size, Roots.of("rev", b"", num_public)))
