"""Ids become text: no broken characters, nothing of a stop string, and every token counted once."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.demo.tokenizer import build_tokenizer
from gemline.engine.events import FinishReason
from gemline.gateway.assemble import Assembler
from gemline.gateway.inbox import Delivery
from gemline.gateway.requests import Piece
from gemline.internal.v1 import sampling_pb2
from gemline.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())
END = 107


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode_prompt(text)[1:]


def assembled(
    ids: list[int], *stops: str, finish: FinishReason = FinishReason.LENGTH, cuts: tuple[int, ...] = ()
) -> list[Piece]:
    """The pieces when the ids come in deliveries cut there; one by one by default. Reading ends with the answer."""
    assembler = Assembler(TOKENIZER, stops, 5)
    pieces = []
    for delivery in deliveries(ids, finish, cuts or tuple(range(1, len(ids)))):
        piece = assembler.push(delivery)
        if piece is not None:
            pieces.append(piece)
            if piece.finish_reason is not None:
                return pieces
    return pieces


def deliveries(ids: list[int], finish: FinishReason, cuts: tuple[int, ...]) -> Iterator[Delivery]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for start, stop in pairwise(edges):
        yield Delivery(ids[start:stop], [], finish if stop == len(ids) else None)


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(st.text(min_size=1, max_size=30), st.lists(st.integers(0, 60), max_size=8))
def test_the_pieces_are_the_text_however_the_ids_are_cut(text: str, cuts: list[int]) -> None:
    ids = ids_of(text)
    for pieces in (assembled(ids), assembled(ids, "\x00never\x00", cuts=tuple(cuts))):
        assert text_of(pieces) == TOKENIZER.decode(ids)
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == len(ids)


@given(st.sampled_from(["👩‍👩‍👧 family", "日本語のテキスト", "naïve café", "🇩🇪🇫🇷"]))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    assert all("\ufffd" not in piece.text for piece in assembled(ids_of(text)))


def test_an_answer_cut_inside_a_character_shows_it_as_a_replacement_at_the_end_only() -> None:
    ids = ids_of("🦜")
    assert len(ids) == 4
    assert text_of(assembled(ids[:3])) == "\ufffd"


def test_the_token_that_the_worker_stopped_at_is_counted_and_not_shown() -> None:
    ids = ids_of("the end")
    pieces = assembled([*ids, END], finish=FinishReason.STOP)
    assert text_of(pieces) == "the end"
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == len(ids) + 1
    # A stop id of the user's own is an ordinary word.
    assert text_of(assembled(ids, finish=FinishReason.STOP)) == TOKENIZER.decode(ids[:-1])


@given(
    st.text("ab ", min_size=1, max_size=20),
    st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_a_stop_string_ends_the_answer_before_it_however_the_ids_are_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ids = ids_of(text)
    decoded = TOKENIZER.decode(ids)
    pieces = assembled(ids, *stops, cuts=tuple(cuts))
    ends = [decoded.index(stop) + len(stop) for stop in stops if stop in decoded]
    if not ends:
        assert (text_of(pieces), pieces[-1].finish_reason) == (decoded, "length")
        return
    found = max((stop for stop in stops if decoded[: min(ends)].endswith(stop)), key=len)
    assert (text_of(pieces), pieces[-1].finish_reason) == (decoded[: min(ends) - len(found)], "stop")


def test_tokens_after_a_stop_string_are_neither_shown_nor_counted() -> None:
    ids = ids_of("one two three four")
    before = len(ids_of("one two"))
    pieces = assembled(ids, " two", cuts=(len(ids),))
    assert text_of(pieces) == "one"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == before


def test_half_a_stop_string_is_shown_once_it_cannot_become_a_whole_one() -> None:
    ids = ids_of("abc")
    assert text_of(assembled(ids, "abcd")) == "abc"
    assert text_of(assembled([*ids, END], "abcd", finish=FinishReason.STOP)) == "abc"


@pytest.mark.parametrize("stops", [(), ("\x00never\x00",)])
def test_log_probabilities_come_with_the_text_of_their_tokens(stops: tuple[str, ...]) -> None:
    ids = ids_of("a 🦜 b")
    assembler = Assembler(TOKENIZER, stops, 1)
    seen: list[int] = []
    for i, token_id in enumerate(ids):
        logprobs = sampling_pb2.Logprobs(token_ids=[token_id, 300], values=[-0.5, -1.5])
        finish = FinishReason.LENGTH if i == len(ids) - 1 else None
        piece = assembler.push(Delivery([token_id], [logprobs], finish))
        if piece is not None:
            data = b"".join(position.chosen.data for position in piece.logprobs)
            assert data.decode() == piece.text
            assert all(position.top[0].token_id == 300 for position in piece.logprobs)
            seen += [position.chosen.token_id for position in piece.logprobs]
    assert seen == ids


def test_log_probabilities_of_tokens_after_a_stop_string_are_left_out() -> None:
    ids = ids_of("one two three")
    logprobs = [sampling_pb2.Logprobs(token_ids=[token_id], values=[-1.0]) for token_id in ids]
    piece = Assembler(TOKENIZER, (" two",), 1).push(Delivery(ids, logprobs, FinishReason.LENGTH))
    assert piece is not None
    assert piece.usage is not None
    assert len(piece.logprobs) == piece.usage.completion_tokens < len(ids)
