"""The bytes of an answer: what is built by hand must be what json would have written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.gateway.http.forms import CHAT, COMPLETION, AnswerForm, AnswerHead
from gemline.gateway.http.logprobs import MIN_LOGPROB, completion_logprobs
from gemline.gateway.http.writers import ChunkWriter, WholeWriter
from gemline.gateway.requests import CallDelta, Piece, PositionLogprobs, TokenLogprob, Usage

HEAD = AnswerHead("id-1", 17, 'a "model"\n', "flex")


def events(data: bytes) -> list[dict[str, Any]]:
    """The JSON of each event, split by every line break that a careless client might split at."""
    lines = data.decode().splitlines()
    assert lines[1::2] == [""] * (len(lines) // 2)
    return [json.loads(line.removeprefix("data: ")) for line in lines[::2]]


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
@given(text=st.text(min_size=1), with_usage=st.booleans())
def test_any_text_survives_its_event(form: AnswerForm, text: str, with_usage: bool) -> None:
    writer = ChunkWriter(form, HEAD, 2, with_usage=with_usage)
    *_, event = events(writer.piece(1, Piece(text)))
    assert event.keys() == {"id", "object", "created", "model", "choices"} | ({"usage"} if with_usage else set())
    assert (event["id"], event["created"], event["model"]) == ("id-1", 17, HEAD.model)
    [choice] = event["choices"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (1, None, None)
    assert (choice["delta"]["content"] if form is CHAT else choice["text"]) == text


@pytest.mark.parametrize("form", [CHAT, COMPLETION])
@given(pieces=st.lists(st.text(max_size=5), max_size=5))
def test_a_stream_and_a_whole_answer_hold_the_same_text(form: AnswerForm, pieces: list[str]) -> None:
    chunks, whole = ChunkWriter(form, HEAD, 1, with_usage=False), WholeWriter(form, HEAD, 1)
    data = b""
    for piece in pieces:
        data += chunks.piece(0, Piece(piece))
        whole.piece(0, Piece(piece))
    data += chunks.piece(0, Piece("end", finish_reason="stop"))
    whole.piece(0, Piece("end", finish_reason="stop"))
    choices = [event["choices"][0] for event in events(data)]
    text = "".join(choice["delta"].get("content", "") if form is CHAT else choice["text"] for choice in choices)
    [choice] = whole.whole(Usage(1, 2))["choices"]
    assert text == (choice["message"]["content"] if form is CHAT else choice["text"]) == "".join(pieces) + "end"
    assert choices[-1]["finish_reason"] == choice["finish_reason"] == "stop"


def test_a_piece_without_text_makes_no_event() -> None:
    assert ChunkWriter(COMPLETION, HEAD, 1, with_usage=False).piece(0, Piece("")) == b""


def test_calls_are_written_whole_and_in_parts() -> None:
    chunks, whole = ChunkWriter(CHAT, HEAD, 1, with_usage=False), WholeWriter(CHAT, HEAD, 1)
    pieces = [
        Piece("", calls=(CallDelta(0, "call_1", "now", ""),)),
        Piece("", calls=(CallDelta(0, "", "", "{}"), CallDelta(1, "call_2", "add", '{"a"'))),
        Piece("", calls=(CallDelta(1, "", "", ": 1}"),), finish_reason="tool_calls"),
    ]
    data = b"".join(chunks.piece(0, piece) for piece in pieces)
    for piece in pieces:
        whole.piece(0, piece)
    deltas = [event["choices"][0]["delta"] for event in events(data)]
    assert [delta["tool_calls"] for delta in deltas[1:-1]] == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}],
        [
            {"index": 0, "function": {"arguments": "{}"}},
            {"index": 1, "id": "call_2", "type": "function", "function": {"name": "add", "arguments": '{"a"'}},
        ],
        [{"index": 1, "function": {"arguments": ": 1}"}}],
    ]
    [choice] = whole.whole(Usage(1, 2))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [(call["id"], call["function"]) for call in choice["message"]["tool_calls"]] == [
        ("call_1", {"name": "now", "arguments": "{}"}),
        ("call_2", {"name": "add", "arguments": '{"a": 1}'}),
    ]


def test_the_usage_event_has_no_choices() -> None:
    [event] = events(ChunkWriter(CHAT, HEAD, 1, with_usage=True).usage(Usage(3, 4, 2)))
    assert event["choices"] == []
    assert event["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def token(data: bytes, logprob: float = -1.0) -> TokenLogprob:
    return TokenLogprob(0, data.decode(errors="replace"), data, logprob)


def test_offsets_count_characters_even_where_tokens_split_them() -> None:
    write = completion_logprobs()
    chosen = [token(part) for part in (b"a", b"\xe2\x82", b"\xac", b"bc", b"d")]
    found = write([PositionLogprobs(one, ()) for one in chosen[:3]])
    assert found["tokens"] == ["a", "bytes:\\xe2\\x82", "bytes:\\xac"]
    assert found["text_offset"] == [0, 1, 1]
    assert write([PositionLogprobs(one, ()) for one in chosen[3:]])["text_offset"] == [2, 4]


def test_tokens_of_the_same_text_are_told_apart_and_the_chosen_one_is_always_there() -> None:
    position = PositionLogprobs(token(b"c", -9.0), (token(b"\xe2", -1.0), token(b"\xe3", -2.0)))
    [top] = completion_logprobs()([position])["top_logprobs"]
    assert top == {"bytes:\\xe2": -1.0, "bytes:\\xe3": -2.0, "c": -9.0}


def test_an_impossible_token_has_a_number_json_can_hold() -> None:
    found = completion_logprobs()([PositionLogprobs(token(b"x", float("-inf")), ())])
    assert found["token_logprobs"] == [MIN_LOGPROB]
