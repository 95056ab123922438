"""A model's vocabulary as llguidance wants it. Imports llguidance when it is made, not before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemline.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_RESERVED = b"\xff"  # begins what llguidance takes for a control token; UTF-8 has no such byte


class _Wrapped:
    """The attributes that llguidance reads, and the call by which it encodes what a grammar leaves no choice about."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        known = min(vocab_size, tokenizer.vocab_size)
        texts = [tokenizer.token_bytes(token_id) for token_id in range(known)]
        self.tokens = [b"" if text.startswith(_RESERVED) else text for text in texts] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted(token_id for token_id in tokenizer.control_ids if token_id < vocab_size)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode_text(text)


def vocabulary(tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> "LLTokenizer":
    """Takes seconds for 256000 tokens. `vocab_size` is the width of the model's logits; `end_ids` end an answer.

    A token stands for the very bytes that our detokenizer shows of it. Control tokens stand for nothing. Raises
    ImportError when llguidance is not installed.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    wrapped = TokenizerWrapper(_Wrapped(tokenizer, vocab_size))
    return LLTokenizer(wrapped, n_vocab=vocab_size, eos_token=list(end_ids))
