"""A tokenizer of Gemma's kind as a sentencepiece file, which is what llama.cpp's converter reads. Knows no model.

The few fields of sentencepiece_model.proto that matter, written in protobuf's wire format: the package sentencepiece
is needed by no one else here.
"""

import json
import struct
from enum import IntEnum

from tokenizers import Tokenizer

_BPE = 2  # TrainerSpec.ModelType


class Kind(IntEnum):
    """ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


def sentencepiece_model(tokenizer: Tokenizer) -> bytes:
    """ModelProto: pieces in the order of their ids, with scores that fall in the order of their merges."""
    rules = json.loads(tokenizer.to_str())
    added = {token["content"]: token["special"] for token in rules["added_tokens"]}
    ranks = {left + right: rank for rank, (left, right) in reversed([*enumerate(rules["model"]["merges"])])}
    vocab: dict[str, int] = rules["model"]["vocab"]
    pieces = [
        _block(1, _piece(token, -float(ranks.get(token, len(ranks))), _kind(token, added, rules["model"]["unk_token"])))
        for token in sorted(vocab, key=vocab.__getitem__)
    ]
    ids = {40: vocab["<unk>"], 41: vocab["<bos>"], 42: vocab["<eos>"], 43: vocab["<pad>"]}
    trainer = {3: _BPE, 4: len(vocab), 35: 1, **ids}  # 35: byte_fallback
    normalizer = {3: 0, 4: 0, 5: 1}  # no dummy prefix, no whitespace removed, spaces escaped
    return b"".join([*pieces, _block(2, _numbers(trainer)), _block(3, _numbers(normalizer))])


def _kind(token: str, added: dict[str, bool], unknown: str) -> Kind:
    if token == unknown:
        return Kind.UNKNOWN
    if token in added:
        return Kind.CONTROL if added[token] else Kind.USER_DEFINED
    return Kind.BYTE if token.startswith("<0x") else Kind.NORMAL


def _piece(text: str, score: float, kind: Kind) -> bytes:
    return _block(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _numbers({3: kind})


def _block(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _numbers(values: dict[int, int]) -> bytes:
    return b"".join(_varint(field << 3) + _varint(value) for field, value in values.items())


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
