import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.demo.tokenizer import VOCAB_SIZE, build_tokenizer
from gemline.text.detokenizer import IncrementalDecoder
from gemline.text.tokenizer import Tokenizer

_TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())
_IDS = st.lists(st.one_of(st.integers(0, VOCAB_SIZE - 1), st.integers(217, 472)), max_size=30)


def _pieces(ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(_TOKENIZER)
    return [*(decoder.push([token_id]) for token_id in ids), decoder.finish()]


def _plain_ids(text: str) -> list[int]:
    return _TOKENIZER.encode_prompt(text)[1:]


@given(_IDS)
def test_the_pieces_together_are_the_whole_text_for_any_tokens(ids: list[int]) -> None:
    assert "".join(_pieces(ids)) == _TOKENIZER.decode(ids)


@given(_IDS, st.integers(0, 30))
def test_it_does_not_matter_how_many_tokens_come_at_once(ids: list[int], cut: int) -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    assert decoder.push(ids[:cut]) + decoder.push(ids[cut:]) + decoder.finish() == _TOKENIZER.decode(ids)


@given(st.text().filter(lambda text: "▁" not in text and "�" not in text))
def test_no_piece_of_a_valid_text_holds_a_part_of_a_character(text: str) -> None:
    pieces = _pieces([token_id for part in text for token_id in _plain_ids(part)])
    assert all("�" not in piece for piece in pieces)


@pytest.mark.parametrize("text", ["字", "🎉", "👩‍👩‍👧‍👦", "ß", "한국어", "a🎉b字c", "\u0000\U0010ffff"])
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    shown = ""
    for index, byte in enumerate(text.encode(), start=1):
        shown += decoder.push([217 + byte])
        assert shown == text.encode()[:index].decode(errors="ignore")
    assert shown == text
    assert decoder.finish() == ""


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_an_answer_that_ends_inside_a_character_ends_with_a_replacement(num_bytes: int) -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    assert decoder.push([217 + byte for byte in "🎉".encode()[:num_bytes]]) == ""
    assert decoder.finish() == "�"


def test_a_broken_character_does_not_hold_back_what_follows() -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    assert decoder.push([217 + 0xF0, 217 + 0x9F]) == ""
    assert decoder.push(_plain_ids("the")) == "�the"


def test_the_first_token_keeps_its_space() -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    assert decoder.push(_plain_ids(" the")) == " the"


def test_control_tokens_and_ids_without_a_token_show_nothing() -> None:
    assert IncrementalDecoder(_TOKENIZER).push([2, 106, 107, 1, 0, VOCAB_SIZE, 10**9]) == ""


def test_a_token_costs_the_same_however_long_the_answer_is() -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    costs_s = []
    for _ in range(20):
        started_s = time.process_time()
        for token_id in range(0, 7 * 2_000, 7):
            decoder.push((token_id % VOCAB_SIZE,))
        costs_s.append(time.process_time() - started_s)
    assert min(costs_s[10:]) < 3 * min(costs_s[:10])
