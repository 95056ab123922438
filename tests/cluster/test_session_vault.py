"""Token ids as bytes: what goes in comes out, and nobody without the key reads or changes it."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from gemline.cluster.session_records import Residence
from gemline.cluster.session_vault import Vault
from gemline.cluster.sessions import SessionStore
from gemline.errors import ConfigurationError, GemlineError, InternalError, Unavailable

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
FAMILY = b"f" * 16
TURNS = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), max_size=5)
KEYS = st.sampled_from([(), (KEY,), (OTHER, KEY)])


def packed(vault: Vault, turns: list[list[int]], family: bytes = FAMILY) -> bytes:
    data, num_ids = b"", 0
    for turn in turns:
        data += vault.pack(turn, family, data[-16:], num_ids)
        num_ids += len(turn)
    return data


@given(TURNS, KEYS)
def test_what_was_packed_turn_by_turn_is_unpacked_as_a_whole(turns: list[list[int]], keys: tuple[bytes, ...]) -> None:
    vault = Vault(keys)
    data = packed(vault, turns)
    assert vault.unpack(data, FAMILY).tolist() == [token_id for turn in turns for token_id in turn]
    if not keys and turns:
        assert data[5 : 5 + 4 * len(turns[0])] == b"".join(i.to_bytes(4, "little") for i in turns[0])


@given(TURNS.filter(bool), st.data())
def test_a_changed_byte_is_found(turns: list[list[int]], draw: st.DataObject) -> None:
    vault = Vault([KEY])
    data = bytearray(packed(vault, turns))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    with pytest.raises(GemlineError):
        vault.unpack(bytes(data), FAMILY)


def test_segments_cannot_change_places_nor_sessions() -> None:
    vault = Vault([KEY])
    first, second = packed(vault, [[1, 2]]), packed(vault, [[3, 4]])
    both = packed(vault, [[1, 2], [3, 4]])
    assert len(both) == 2 * len(first)
    for wrong in (first + second, both[len(first) :], both[len(first) :] + first):
        with pytest.raises(InternalError, match="damaged"):
            vault.unpack(wrong, FAMILY)
    with pytest.raises(InternalError, match="damaged"):
        vault.unpack(both, b"g" * 16)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_transcript_are_told_as_such(data: bytes) -> None:
    try:
        Vault([KEY]).unpack(data, FAMILY)
    except GemlineError as error:
        assert error.http_status in (500, 503)


def test_the_ids_do_not_show_in_what_is_kept() -> None:
    ids = [123456, 654321] * 8
    data = packed(Vault([KEY]), [ids, ids])
    assert all(token_id.to_bytes(4, "little") not in data for token_id in ids)
    assert packed(Vault([KEY]), [ids]) != packed(Vault([KEY]), [ids])


def test_keys_are_read_from_base64_and_the_first_seals() -> None:
    old, new = (base64.b64encode(key).decode() for key in (KEY, OTHER))
    rotated = Vault.from_text(f"{new}, {old}")
    sealed_before = packed(Vault.from_text(old), [[1]])
    assert rotated.unpack(sealed_before, FAMILY).tolist() == [1]
    assert Vault.from_text(new).unpack(packed(rotated, [[2]]), FAMILY).tolist() == [2]
    assert Vault.from_text(" ").unpack(packed(Vault(), [[3]]), FAMILY).tolist() == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not base64!", "GEMLINE_SESSION_KEY is not base64"),
        (base64.b64encode(b"short").decode(), "holds 5 bytes; a key has 32"),
        (base64.b64encode(KEY).decode() + ",", "holds 0 bytes"),
    ],
)
def test_a_key_that_is_none_is_refused_without_being_shown(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Vault.from_text(text)
    assert text not in caught.value.message


async def test_without_the_key_a_session_is_unreadable_for_now_and_loses_nothing(redis: Redis) -> None:
    home = Residence()
    with_key = SessionStore(redis, vault=Vault([KEY]))
    made = await with_key.create("acme", "gemma", "cd", 60.0, {})
    await with_key.commit(await with_key.begin_turn("acme", made.session_id), [7, 8, 9], home)
    for stranger in (SessionStore(redis), SessionStore(redis, vault=Vault([os.urandom(32)]))):
        with pytest.raises(Unavailable, match="encrypted with a key that this gateway does not have"):
            await stranger.begin_turn("acme", made.session_id)
        assert (await stranger.get("acme", made.session_id)).num_tokens == 3
        fork = await stranger.fork("acme", made.session_id)
        assert list((await with_key.begin_turn("acme", fork.session_id)).token_ids) == [7, 8, 9]
    turn = await with_key.begin_turn("acme", made.session_id)
    assert list(turn.token_ids) == [7, 8, 9]
    stored = await redis.get(with_key._names.keys("acme", made.session_id).ids)
    assert isinstance(stored, bytes)
    assert (7).to_bytes(4, "little") not in stored


async def test_a_session_that_began_without_a_key_goes_on_with_one(redis: Redis) -> None:
    home, plain, sealing = Residence(), SessionStore(redis), SessionStore(redis, vault=Vault([KEY]))
    made = await plain.create("acme", "gemma", "cd", 60.0, {})
    for store, token_ids in ((plain, [1]), (sealing, [2]), (sealing, [3])):
        await store.commit(await store.begin_turn("acme", made.session_id), token_ids, home)
    assert list((await sealing.begin_turn("acme", made.session_id)).token_ids) == [1, 2, 3]
