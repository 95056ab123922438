"""Token ids to text while they come, never a part of a character. Knows no stop strings and no network."""

import codecs
from collections.abc import Iterable

from gemline.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """The text of one answer, piece by piece; all pieces together are `Tokenizer.decode` of all ids.

    Works on the tokens' bytes, so a token costs the same however long the answer is; the UTF-8 decoder holds back the
    start of a character (at most 3 bytes) until its end has come. Gemma puts no space before a text, so the first
    token needs no rule of its own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held = b""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; possibly empty."""
        return self._decode(self._tokenizer.join_bytes(ids))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is held back."""
        return not self._held

    def finish(self) -> str:
        """What was held back: U+FFFD when the answer ended inside a character, else nothing."""
        return self._decode(b"", is_last=True)

    def _decode(self, data: bytes, *, is_last: bool = False) -> str:
        data = self._held + data
        text, num_used = codecs.utf_8_decode(data, "replace", is_last)
        self._held = data[num_used:]
        return text
