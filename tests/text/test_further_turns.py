"""Turns that continue a conversation: the tokens that are there, then only what is new."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gemline.demo.tokenizer import build_tokenizer
from gemline.errors import InvalidRequest
from gemline.text.chat import Turn
from gemline.text.detokenizer import IncrementalDecoder
from gemline.text.tokenizer import Tokenizer

_TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())
_MARKERS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "\n", " ", "user", "model", "字", "é"]
_CONTENT = st.lists(st.one_of(st.sampled_from(_MARKERS), st.text(max_size=3)), max_size=8).map("".join)
_SYSTEM = Turn("system", "be kind")


def _encodes_alike_alone(answer: str) -> bool:
    """Whether an answer, generated after the model's turn was opened, is what a whole conversation has in its place."""
    opening = _TOKENIZER.encode_text("model\n")
    return answer == answer.strip() and _TOKENIZER.encode_text(f"model\n{answer}") == [
        *opening,
        *_TOKENIZER.encode_text(answer),
    ]


@given(st.lists(st.tuples(_CONTENT, _CONTENT), min_size=1, max_size=4), _CONTENT)
def test_turn_by_turn_gives_the_ids_of_the_whole_conversation(pairs: list[tuple[str, str]], last: str) -> None:
    assume(all(_encodes_alike_alone(answer) for _, answer in pairs))
    whole = [turn for question, answer in pairs for turn in (Turn("user", question), Turn("model", answer))]
    ids: list[int] = []
    for question, answer in pairs:
        turn = [Turn("user", question)]
        ids += _TOKENIZER.encode_further(turn) if ids else _TOKENIZER.encode_chat(turn)
        ids += [*_TOKENIZER.encode_text(answer), _TOKENIZER.end_of_turn_id]
    ids += _TOKENIZER.encode_further([Turn("user", last)])
    assert ids == _TOKENIZER.encode_chat([*whole, Turn("user", last)])


def test_most_answers_encode_alike_alone() -> None:
    assert all(map(_encodes_alike_alone, ["Hello", "the user 字", "1. one\n2. two", "<b>é</b>"]))
    assert not _encodes_alike_alone("\n\n")


@given(_CONTENT)
def test_nothing_in_a_further_turn_acts_as_a_control_token(content: str) -> None:
    ids = _TOKENIZER.encode_further([Turn("user", content)])
    control = [_TOKENIZER.decode([i], keep_control=True) for i in ids if i in _TOKENIZER.control_ids]
    assert control == ["<start_of_turn>", "<end_of_turn>", "<start_of_turn>"]
    text = _TOKENIZER.decode(ids, keep_control=True)
    assert text.startswith("\n<start_of_turn>user\n")
    assert text.endswith("<end_of_turn>\n<start_of_turn>model\n")


def test_several_messages_may_follow_at_once() -> None:
    turns = [Turn("user", "one"), Turn("model", "two"), Turn("user", "three")]
    assert (
        _TOKENIZER.encode_further(turns)
        == _TOKENIZER.encode_chat([Turn("user", "x"), Turn("model", "y"), *turns])[
            len(_TOKENIZER.encode_chat([Turn("user", "x")]) + _TOKENIZER.encode_text("y")) + 1 :
        ]
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "messages is empty"),
        ([Turn("model", "hi")], "messages[0] has role 'assistant': 'user' must stand there"),
        ([Turn("user", "hi"), Turn("model", "hi")], "messages[1] has role 'assistant': the user must speak last"),
        ([_SYSTEM, Turn("user", "hi")], "messages[0] has role 'system': only a conversation's first may have it"),
    ],
)
def test_a_further_turn_out_of_order_is_refused(turns: list[Turn], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _TOKENIZER.encode_further(turns, "prepend")
    assert caught.value.param == "messages"
    assert caught.value.message.startswith(message)


def test_where_system_turns_are_refused_they_are_refused_for_what_they_are() -> None:
    with pytest.raises(InvalidRequest, match="Gemma 2 has no such role"):
        _TOKENIZER.encode_further([_SYSTEM, Turn("user", "hi")])


def test_a_decoder_knows_whether_it_holds_something_back() -> None:
    decoder = IncrementalDecoder(_TOKENIZER)
    seen = []
    for token_id in _TOKENIZER.encode_text("ß"):
        decoder.push([token_id])
        seen.append(decoder.is_whole)
    assert seen == [False, True]
