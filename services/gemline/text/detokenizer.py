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
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; possibly empty."""
        return self._utf8.decode(self._tokenizer.join_bytes(ids))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is held back."""
        return not self._utf8.getstate()[0]

    def finish(self) -> str:
        """What was held back: U+FFFD when the answer ended inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)
