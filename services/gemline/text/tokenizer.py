"""Text to token ids and back, by the tokenizer.json of a Gemma 2 checkpoint. Knows no model and no network."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers

from gemline.errors import CheckpointError, InvalidRequest
from gemline.text.chat import SystemPrompt, Turn, gemma_turns

FILE_NAME = "tokenizer.json"

_SPACE = "▁"  # stands for a space inside tokens
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BOS, _EOS, _UNK, _START, _END = "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>"
_NEEDED = (_BOS, _EOS, _START, _END)


class Tokenizer:
    """Immutable once made, and safe to share between threads; encoding and decoding release the GIL.

    The control tokens are those that the file marks as special, and <bos>, <eos> and the turn markers in any case. They
    act as such in a raw prompt alone: in the content of a turn they are spelled out as ordinary text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, sha256: str) -> None:
        self.sha256 = sha256  # of tokenizer.json, hex
        self._backend = backend
        self._control = _control_tokens(backend)
        self.control_ids = frozenset(self._control.values())
        self._marker_ids = self.control_ids - {backend.token_to_id(_UNK)}
        self.bos_id, self.eos_id = self._control[_BOS], self._control[_EOS]
        self.end_of_turn_id = self._control[_END]
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        longest_first = sorted(self._control, key=lambda token: (-len(token), token))
        self._at_control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._token_bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, source: Path | bytes) -> Self:
        """The tokenizer in a tokenizer.json: its bytes, its path, or the path of the checkpoint's folder.

        Raises CheckpointError, which names the file, when it is missing or not a tokenizer of Gemma's kind.
        """
        content = source if isinstance(source, bytes) else read_tokenizer_file(source)
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{FILE_NAME} cannot be read: {error}") from error
        tokenizer = cls(_prepared(backend), hashlib.sha256(content).hexdigest())
        _check_decoder(backend, tokenizer)
        return tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a raw prompt in which control tokens act; <bos> first and nowhere else, whether written or not."""
        parts = self._at_control.split(text)
        plain = self._encode_plain(parts[0::2])
        ids = [self.bos_id, *plain[0]]
        for control, following in zip(parts[1::2], plain[1:], strict=True):
            if control != _BOS:
                ids.append(self._control[control])
            ids += following
        return ids

    def encode_chat(self, turns: Sequence[Turn], system_prompt: SystemPrompt = "refuse") -> list[int]:
        """The ids of a conversation in Gemma's template, the model's next turn opened; content never controls.

        Raises InvalidRequest(param="messages") when the turns break the rules of `gemma_turns`.
        """
        return [self.bos_id, *self._encode_turns(gemma_turns(turns, system_prompt))]

    def encode_further(self, turns: Sequence[Turn], system_prompt: SystemPrompt = "refuse") -> list[int]:
        """What `encode_chat` has for `turns` where they follow others, from behind the model's last <end_of_turn> on.

        Raises InvalidRequest(param="messages") as `encode_chat` does, and for a system turn in any case.
        """
        ordered = gemma_turns(turns, system_prompt, continues=True)
        (newline,) = self._encode_plain(["\n"])
        return [*newline, *self._encode_turns(ordered)]

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text, a piece of a turn's content; nothing in it acts as a control token."""
        return self._encode_plain([text])[0]

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """The text of `ids`: bytes that are no UTF-8 become U+FFFD; control tokens are left out unless kept.

        Raises InvalidRequest for an id outside the vocabulary.
        """
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest(f"token id {token_id} is not in [0, {self.vocab_size})", param="tokens")
        return self.join_bytes(ids, keep_control=keep_control).decode(errors="replace")

    def join_bytes(self, ids: Iterable[int], *, keep_control: bool = False) -> bytes:
        """The bytes of `ids` in a row; control tokens are left out unless kept."""
        control_ids = frozenset[int]() if keep_control else self.control_ids
        return b"".join([self.token_bytes(token_id) for token_id in ids if token_id not in control_ids])

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token stands for, a control token's name included; none for an id without a token."""
        data = self._token_bytes.get(token_id)
        if data is None:
            data = self._token_bytes[token_id] = _token_bytes(self._backend.id_to_token(token_id))
        return data

    def token_text(self, token_id: int) -> str:
        """A token's text, with U+FFFD for what is only a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def _encode_turns(self, ordered: Sequence[Turn]) -> list[int]:
        """Turn after turn, the model's next one opened."""
        texts = [f"{turn.role}\n{turn.content}" for turn in ordered]
        *bodies, newline, opening = self._encode_plain([*texts, "\n", "model\n"])
        start_id, end_id = self._control[_START], self._control[_END]
        ids: list[int] = []
        for body in bodies:
            ids += [start_id, *body, end_id, *newline]
        return [*ids, start_id, *opening]

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, nothing in it taken as a control token."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._spelled_out(encoding.ids) for encoding in encodings]

    def _spelled_out(self, ids: list[int]) -> list[int]:
        """`ids`, but a control token that merges made out of plain text is replaced by its letters.

        Merges derived from a vocabulary (every way to cut every token) can lead to a control token's own name. <unk>
        alone may stand: without byte fallback it is what a letter outside the vocabulary gives.
        """
        if self._marker_ids.isdisjoint(ids):
            return ids
        spelled: list[int] = []
        for token_id in ids:
            letters = self.token_text(token_id) if token_id in self._marker_ids else ""
            encodings = self._backend.encode_batch_fast(list(letters), add_special_tokens=False)
            spelled += [letter_id for encoding in encodings for letter_id in encoding.ids] or [token_id]
        return spelled


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of a tokenizer.json, given its path or its folder's; raises CheckpointError."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


def tokenizer_sha256(path: Path) -> str:
    """SHA-256, hex, of a tokenizer.json, given its path or its folder's; raises CheckpointError."""
    return hashlib.sha256(read_tokenizer_file(path)).hexdigest()


def _prepared(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, which cuts and pads nothing and takes no plain text for a control token."""
    backend.no_truncation()
    backend.no_padding()
    missing = [token for token in _NEEDED if backend.token_to_id(token) is None]
    if missing:
        raise CheckpointError(f"{FILE_NAME} has no token {', '.join(missing)}: not a tokenizer of Gemma's kind")
    backend.add_special_tokens(list(_NEEDED))  # some files do not mark them as special
    backend.encode_special_tokens = True
    return backend


def _control_tokens(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """The control tokens' ids."""
    added = backend.get_added_tokens_decoder()
    return {token.content: token_id for token_id, token in added.items() if token.special or token.content in _NEEDED}


def _token_bytes(token: str | None) -> bytes:
    if token is None:
        return b""
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(_SPACE, " ").encode()


def _check_decoder(backend: tokenizers.Tokenizer, tokenizer: Tokenizer) -> None:
    """Refuses a file whose decoder does more to a text than Gemma's: our streams would differ from it."""
    sample = "  ▁ a b\n\n é\t字 😀 <h1>"
    for ids in tokenizer._encode_plain([sample, sample[2:], "a", " a"]):
        ours, theirs = tokenizer.decode(ids), backend.decode(ids, skip_special_tokens=False)
        if ours != theirs:
            raise CheckpointError(f"{FILE_NAME} decodes {ours!r} to {theirs!r}: its decoder is not Gemma's")
