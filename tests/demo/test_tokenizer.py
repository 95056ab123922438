import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gemline.demo.tokenizer import VOCAB_SIZE, build_tokenizer

_TOKENIZER = build_tokenizer()


@pytest.mark.parametrize(
    ("token_id", "token"),
    [
        *((0, "<pad>"), (1, "<eos>"), (2, "<bos>"), (3, "<unk>"), (106, "<start_of_turn>"), (107, "<end_of_turn>")),
        *((108, "\n"), (138, "\n" * 31), (139, "▁▁"), (168, "▁" * 31), (217, "<0x00>"), (472, "<0xFF>")),
    ],
)
def test_ids_are_those_of_gemma_2(token_id: int, token: str) -> None:
    assert _TOKENIZER.id_to_token(token_id) == token
    assert _TOKENIZER.token_to_id(token) == token_id


def test_the_vocabulary_has_exactly_its_size_and_no_hole() -> None:
    vocab = _TOKENIZER.get_vocab(with_added_tokens=True)
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE))


def test_the_bytes_of_tokenizer_json_never_change() -> None:
    digest = hashlib.sha256(_TOKENIZER.to_str().encode()).hexdigest()
    assert digest == hashlib.sha256(build_tokenizer().to_str().encode()).hexdigest()


def test_the_learned_vocabulary_never_changes() -> None:
    tokens = "\n".join(_TOKENIZER.id_to_token(token_id) or "" for token_id in range(VOCAB_SIZE))
    assert (
        hashlib.sha256(tokens.encode()).hexdigest()
        == "15d3337e647dd379f5b00ccc7d4bfc07a9e483648f5f63f715afc82b52f40957"
    )


def test_it_reads_back_from_its_json() -> None:
    again = Tokenizer.from_str(_TOKENIZER.to_str())
    text = "<start_of_turn>user\nHello,   world 😀 字<end_of_turn>\n"
    assert again.encode(text).ids == _TOKENIZER.encode(text).ids


def test_common_words_are_one_token_each() -> None:
    assert _TOKENIZER.encode("user\nthe model", add_special_tokens=False).tokens == ["user", "\n", "the", "▁model"]


@pytest.mark.parametrize("length", range(2, 32))
def test_a_run_of_spaces_is_one_token(length: int) -> None:
    assert _TOKENIZER.encode("a" + " " * length + "\n", add_special_tokens=False).tokens[1:-1] == ["▁" * length]


@given(st.text().filter(lambda text: "▁" not in text))
def test_any_text_survives_a_round_trip(text: str) -> None:
    ids = _TOKENIZER.encode(text, add_special_tokens=False).ids
    assert _TOKENIZER.decode(ids, skip_special_tokens=False) == text
