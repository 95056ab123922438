"""A session's token ids as bytes, encrypted when there is a key: one segment a turn, so that a turn only appends.

    segment = kind (1 byte) | number of ids (4) | body         all numbers little-endian, an id has 4 bytes
    kind 0: body = ids
    kind 1: body = key id (4) | nonce (12) | AES-256-GCM of the ids, tag last (16)

The cipher also vouches for where a segment stands: after which ids, after which segment, in whose sessions.
"""

import base64
import hashlib
import logging
import secrets
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gemline.errors import ConfigurationError, InternalError, Unavailable

KEY_BYTES = 32
VARIABLE = "GEMLINE_SESSION_KEY"

_HEAD = struct.Struct("<BI")
_PLAIN, _SEALED = 0, 1
_KEY_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 4, 12, 16
_DOMAIN = b"gemline session transcript"

logger = logging.getLogger(__name__)


class Vault:
    """Seals with the first key, opens with any of them; without keys it seals nothing, and opens what is not sealed."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._sealing_id = _key_id(keys[0]) if keys else None

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Of keys in base64, with commas between them. Raises ConfigurationError that shows nothing of them."""
        return cls([_key_of(one.strip()) for one in text.split(",")] if text.strip() else ())

    def pack(self, token_ids: Sequence[int], family: bytes, before: bytes, num_before: int) -> bytes:
        """The segment that adds these ids to the `num_before` ids whose bytes are `before`."""
        data = _in_order(array("I", token_ids)).tobytes()
        if self._sealing_id is None:
            return _HEAD.pack(_PLAIN, len(token_ids)) + data
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._sealing_id].encrypt(nonce, data, _place(family, before, num_before))
        return _HEAD.pack(_SEALED, len(token_ids)) + self._sealing_id + nonce + sealed

    def unpack(self, data: bytes, family: bytes) -> "array[int]":
        """All ids.

        Raises Unavailable when they are sealed with a key that is not here, InternalError when they are damaged.
        """
        ids = array("I")
        start = 0
        while start < len(data):
            start = self._unpack_one(data, start, family, ids)
        return ids

    def _unpack_one(self, data: bytes, start: int, family: bytes, ids: "array[int]") -> int:
        """Adds a segment's ids to `ids`; where the next one begins."""
        if len(data) < start + _HEAD.size:
            raise _damaged()
        kind, num_ids = _HEAD.unpack_from(data, start)
        body = start + _HEAD.size
        stop: int = body + 4 * num_ids + (_KEY_ID_BYTES + _NONCE_BYTES + _TAG_BYTES if kind == _SEALED else 0)
        if kind not in (_PLAIN, _SEALED) or len(data) < stop:
            raise _damaged()
        plain = data[body:stop]
        if kind == _SEALED:
            plain = self._open(plain, _place(family, data[:start], len(ids)))
        ids.extend(_in_order(array("I", plain)))
        return stop

    def _open(self, body: bytes, place: bytes) -> bytes:
        key_id, nonce = body[:_KEY_ID_BYTES], body[_KEY_ID_BYTES : _KEY_ID_BYTES + _NONCE_BYTES]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            logger.error("a session is encrypted with a key that %s does not hold", VARIABLE)
            raise Unavailable(
                "the session is encrypted with a key that this gateway does not have; nothing was changed, and the"
                " session goes on where the key is"
            )
        try:
            return cipher.decrypt(nonce, body[_KEY_ID_BYTES + _NONCE_BYTES :], place)
        except InvalidTag as error:
            raise _damaged() from error


def _key_of(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigurationError(f"{VARIABLE} is not base64", param="session_key") from None
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{VARIABLE} holds {len(key)} bytes; a key has {KEY_BYTES}", param="session_key")
    return key


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"gemline session key id" + key).digest()[:_KEY_ID_BYTES]


def _place(family: bytes, before: bytes, num_before: int) -> bytes:
    return _DOMAIN + family + num_before.to_bytes(8, "little") + before[-_TAG_BYTES:]


def _in_order(ids: "array[int]") -> "array[int]":
    """From this machine's order of bytes to little-endian, or back."""
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _damaged() -> InternalError:
    return InternalError("the session's transcript is damaged and cannot be read; nothing was changed")
