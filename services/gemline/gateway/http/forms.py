"""How each of OpenAI's two APIs writes an answer, as data. Knows no connection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gemline.gateway.http.logprobs import LogprobsWriter, chat_logprobs, completion_logprobs
from gemline.gateway.requests import CallDelta, Usage

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The words of one API. The bytes are parts of a JSON object: the fields of a streamed choice besides its index,
    logprobs and finish_reason."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    opening: bytes | None  # of a choice's first event, before any text
    before_text: bytes
    after_text: bytes
    closing: bytes  # of a choice's last event, which has no text
    whole_choice: Callable[[str, Sequence[CallDelta]], JsonObject]  # the fields that hold an answer in one piece
    logprobs_writer: Callable[[], LogprobsWriter]  # one for each choice


def _chat_choice(text: str, calls: Sequence[CallDelta]) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
    return {"message": message}


def _call(call: CallDelta) -> JsonObject:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_delta(call: CallDelta) -> JsonObject:
    """A part of a call in a streamed chat."""
    if call.call_id:
        return {"index": call.index, **_call(call)}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _completion_choice(text: str, calls: Sequence[CallDelta]) -> JsonObject:
    return {"text": text}


CHAT = AnswerForm(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    opening=b'"delta":{"role":"assistant","content":""}',
    before_text=b'"delta":{"content":',
    after_text=b"}",
    closing=b'"delta":{}',
    whole_choice=_chat_choice,
    logprobs_writer=chat_logprobs,
)

COMPLETION = AnswerForm(
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    opening=None,
    before_text=b'"text":',
    after_text=b"",
    closing=b'"text":""',
    whole_choice=_completion_choice,
    logprobs_writer=completion_logprobs,
)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every JSON object of one response repeats."""

    answer_id: str
    created_s: int  # Unix time
    model: str
    service_tier: str  # in which it was served


def write_usage(usage: Usage) -> JsonObject:
    """OpenAI's usage object."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
