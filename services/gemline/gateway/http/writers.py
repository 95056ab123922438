"""Writes pieces of answers as server-sent events or as one JSON object. Knows no connection."""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii

from gemline.gateway.http.forms import AnswerForm, AnswerHead, JsonObject, call_delta, write_usage
from gemline.gateway.requests import CallDelta, Piece, PositionLogprobs, Usage
from gemline.gateway.tool_calls import joined_calls

DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """Turns pieces into server-sent events: for each choice the bytes around the text are made once.

    Text is escaped to ASCII: some clients split events at every line break Unicode knows, U+2028 and U+0085 included.
    """

    def __init__(self, form: AnswerForm, head: AnswerHead, num_choices: int, *, with_usage: bool) -> None:
        self._form = form
        fields = {
            "id": head.answer_id,
            "object": form.chunk_object,
            "created": head.created_s,
            "model": head.model,
        }
        self._start = b"data: " + _json(fields)[:-1] + b',"choices":['
        # With include_usage every event says so: null until the last.
        self._stop = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        self._tier = b',"service_tier":' + _json(head.service_tier)
        self._starts = [self._start + b'{"index":%d,' % index for index in range(num_choices)]
        self._befores = [start + form.before_text for start in self._starts]
        self._after = form.after_text + b',"logprobs":null,"finish_reason":null}' + self._stop
        self._logprobs = [form.logprobs_writer() for _ in range(num_choices)]
        self._unopened = set(range(num_choices)) if form.opening else set()

    def piece(self, index: int, piece: Piece) -> bytes:
        """The events that a piece of that choice makes: none, or a few."""
        events = self._opened(index) if index in self._unopened else b""
        if piece.logprobs:
            events += self._with_logprobs(index, piece.text, piece.logprobs)
        elif piece.text:
            events += self._befores[index] + encode_basestring_ascii(piece.text).encode() + self._after
        if piece.calls:
            delta = b'"delta":' + _json({"tool_calls": [call_delta(call) for call in piece.calls]})
            events += self._event(index, delta)
        if piece.finish_reason is not None:
            events += self._event(index, self._form.closing, finish_reason=piece.finish_reason)
        return events

    def usage(self, usage: Usage) -> bytes:
        """The event that comes after every choice when the client asked for usage."""
        return self._start + b"]" + self._tier + b',"usage":' + _json(write_usage(usage)) + b"}\n\n"

    def _opened(self, index: int) -> bytes:
        self._unopened.remove(index)
        return self._event(index, self._form.opening or b"")

    def _with_logprobs(self, index: int, text: str, positions: Sequence[PositionLogprobs]) -> bytes:
        delta = self._form.before_text + encode_basestring_ascii(text).encode() + self._form.after_text
        return self._event(index, delta, logprobs=_json(self._logprobs[index](positions)))

    def _event(self, index: int, delta: bytes, *, logprobs: bytes = b"null", finish_reason: str | None = None) -> bytes:
        choice = delta + b',"logprobs":' + logprobs + b',"finish_reason":' + _json(finish_reason) + b"}"
        # The tier is told with a choice's end.
        stop = self._stop if finish_reason is None else b"]" + self._tier + self._stop[1:]
        return self._starts[index] + choice + stop


class WholeWriter:
    """Gathers pieces and writes one JSON object of them."""

    def __init__(self, form: AnswerForm, head: AnswerHead, num_choices: int) -> None:
        self._form = form
        self._head = head
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._positions: list[list[PositionLogprobs]] = [[] for _ in range(num_choices)]
        self._calls: list[list[CallDelta]] = [[] for _ in range(num_choices)]
        self._finish: list[str | None] = [None] * num_choices

    def piece(self, index: int, piece: Piece) -> None:
        """Keep a piece of that choice."""
        self._texts[index].append(piece.text)
        self._positions[index].extend(piece.logprobs)
        self._calls[index].extend(piece.calls)
        self._finish[index] = piece.finish_reason

    def whole(self, usage: Usage) -> JsonObject:
        """The answer."""
        return {
            "id": self._head.answer_id,
            "object": self._form.whole_object,
            "created": self._head.created_s,
            "model": self._head.model,
            "choices": [self._choice(index) for index in range(len(self._texts))],
            "usage": write_usage(usage),
            "service_tier": self._head.service_tier,
        }

    def _choice(self, index: int) -> JsonObject:
        positions = self._positions[index]
        return {
            "index": index,
            **self._form.whole_choice("".join(self._texts[index]), joined_calls(self._calls[index])),
            "logprobs": self._form.logprobs_writer()(positions) if positions else None,
            "finish_reason": self._finish[index],
        }


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
