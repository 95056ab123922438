"""A tokenizer of Gemma's kind, 1024 tokens small and made by rule: the same bytes on every machine. Knows no model.

Special tokens, runs of newlines and spaces, HTML tags and the 256 bytes have the ids that Gemma 2 gives them;
letters and merges learned from `words.WORDS` follow.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from gemline.demo.words import WORDS

VOCAB_SIZE = 1024
SPACE = "▁"  # stands for a space inside tokens

_NUM_UNUSED = 99
_LONGEST_RUN = 31
_TAGS = (
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "strong", "em", "b", "i", "u", "s", "sub", "sup", "code"),
)
_UNKNOWN = "<unk>"
_SPECIAL = ("<pad>", "<eos>", "<bos>", _UNKNOWN, "<start_of_turn>", "<end_of_turn>")
LETTERS = (*(chr(code) for code in range(0x21, 0x7F)), SPACE, *"éüñ中文日本语😀")


class _Pieces(NamedTuple):
    """One spelling in the corpus, how often it stands there, and how it is cut so far."""

    text: str
    weight: int
    parts: list[str]


def build_tokenizer() -> Tokenizer:
    """The demo tokenizer, without a chat template: byte fallback, no prefix space, <bos> before a text."""
    return tokenizer_of(_learn_merges(num_merges(VOCAB_SIZE)))


def num_merges(vocab_size: int) -> int:
    """How many merges fill a vocabulary of that size."""
    return vocab_size - len(_first_tokens()) - len(LETTERS)


def tokenizer_of(learned: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of Gemma's kind with those merges behind Gemma's first tokens and the letters."""
    first = _first_tokens()
    tokens = [*first, *LETTERS, *("".join(merge) for merge in learned)]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [*_run_merges(), *learned]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token=_UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.add_tokens([_added(token) for token in first if not token.startswith("<0x")])
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, special=token in _SPECIAL, normalized=False)


def _first_tokens() -> list[str]:
    """The tokens whose ids are those of Gemma 2: 0 <pad> to 216 </code>, then 217 <0x00> to 472 <0xFF>."""
    return [
        *("<pad>", "<eos>", "<bos>", _UNKNOWN, "<mask>", "<2mass>", "[@BOS@]"),
        *(f"<unused{index}>" for index in range(_NUM_UNUSED)),
        *("<start_of_turn>", "<end_of_turn>"),
        *("\n" * length for length in range(1, _LONGEST_RUN + 1)),
        *(SPACE * length for length in range(2, _LONGEST_RUN + 1)),
        *(f"<{tag}>" for tag in _TAGS),
        *(f"</{tag}>" for tag in _TAGS),
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]


def _run_merges() -> list[tuple[str, str]]:
    """Every way to join two runs of spaces, the shorter result first: any run up to the longest becomes one token."""
    return [
        (SPACE * left, SPACE * (length - left)) for length in range(2, _LONGEST_RUN + 1) for left in range(1, length)
    ]


def _learn_merges(num_merges: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: time and again the heaviest pair of neighbours becomes one; the first in order wins a tie."""
    corpus = _corpus()
    weights: Counter[tuple[str, str]] = Counter()
    for word in corpus:
        _count(weights, word, word.weight)
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pair = min(weights, key=lambda candidate: (-weights[candidate], candidate))
        merges.append(pair)
        joined = "".join(pair)
        for word in corpus:
            if joined in word.text and pair in pairwise(word.parts):
                _count(weights, word, -word.weight)
                word.parts[:] = _merge(word.parts, pair)
                _count(weights, word, word.weight)
    return merges


def _corpus() -> list[_Pieces]:
    """Each word after a space, and more rarely at the start of a line; frequencies fall as Zipf's law has it."""
    words = []
    for rank, word in enumerate(WORDS):
        weight = 1 + len(WORDS) // (rank + 1)
        words += [_Pieces(SPACE + word, 4 * weight, [SPACE, *word]), _Pieces(word, weight, [*word])]
    return words


def _count(weights: Counter[tuple[str, str]], word: _Pieces, weight: int) -> None:
    for pair in pairwise(word.parts):
        weights[pair] += weight


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
