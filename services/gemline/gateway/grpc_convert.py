"""Between the public messages and the gateway's own words. The one file that knows both; decides nothing."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

from collections.abc import Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from gemline.cluster.access import Band
from gemline.cluster.records import ModelCard
from gemline.errors import InvalidRequest
from gemline.gateway.grpc_formats import constraint
from gemline.gateway.requests import (
    MAX_MESSAGES,
    CallDelta,
    Piece,
    PositionLogprobs,
    Prompt,
    SamplingOptions,
    TokenLogprob,
    Usage,
)
from gemline.gateway.sessions import Session
from gemline.gateway.tool_calls import joined_calls
from gemline.gateway.tools import Said, SaidCall, ToolUse, told_messages, tools_constraint
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import sessions_pb2

_ROLES = {pb.ROLE_USER: "user", pb.ROLE_ASSISTANT: "assistant", pb.ROLE_SYSTEM: "system", pb.ROLE_TOOL: "tool"}
_FINISH_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
}
_BANDS: dict[Band, pb.Band.ValueType] = {
    "priority": pb.BAND_PRIORITY,
    "default": pb.BAND_DEFAULT,
    "batch": pb.BAND_BATCH,
}
_OPTIONAL = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "logprobs"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def text_prompt(text: str) -> Prompt:
    """A raw prompt."""
    return Prompt(text=text)


def chat_prompt(messages: Sequence[pb.Message], use: ToolUse | None = None) -> Prompt:
    """The messages of a conversation; raises InvalidRequest for too many, and for a role that is none."""
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {len(messages)} entries; at most {MAX_MESSAGES} are taken", param="messages"
        )
    return Prompt(messages=told_messages([_said(index, message) for index, message in enumerate(messages)], use))


def counted_prompt(request: pb.CountTokensRequest) -> Prompt:
    """The one of the two that is there; raises InvalidRequest when both are."""
    if request.messages and request.prompt:
        raise InvalidRequest("give either prompt or messages, not both", param="prompt")
    return chat_prompt(request.messages) if request.messages else text_prompt(request.prompt)


def sampling_options(message: pb.SamplingOptions, use: ToolUse | None = None) -> SamplingOptions:
    """What the user set; fields that are not set are None. Raises InvalidRequest for a form that is too large."""
    form = constraint(message.response_format)
    given = {field.name: value for field, value in message.ListFields() if field.name in _OPTIONAL}
    return SamplingOptions(
        **given,
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        constraint=form if use is None else tools_constraint(use, form),
    )


def calls(deltas: Iterable[CallDelta]) -> list[pb.ToolCallDelta]:
    """The messages of what is new of some calls."""
    return [pb.ToolCallDelta(index=one.index, id=one.call_id, name=one.name, arguments=one.arguments) for one in deltas]


def whole_calls(deltas: Iterable[CallDelta]) -> list[pb.ToolCall]:
    """The messages of calls, each in one piece."""
    return [pb.ToolCall(id=one.call_id, name=one.name, arguments=one.arguments) for one in joined_calls(deltas)]


def finish_reason(piece: Piece) -> pb.FinishReason.ValueType:
    """UNSPECIFIED on all pieces but the last."""
    if piece.finish_reason is None:
        return pb.FINISH_REASON_UNSPECIFIED
    return _FINISH_REASONS[piece.finish_reason]


def asked_band(message: pb.Band.ValueType) -> Band | None:
    """None where it is left to the tenant; raises InvalidRequest for one that is not known here."""
    if message not in (pb.BAND_UNSPECIFIED, *_BANDS.values()):
        raise InvalidRequest(f"band must be one of {', '.join(_BANDS)}, not {message}", param="band")
    return next((band for band, value in _BANDS.items() if value == message), None)


def served_band(piece: Piece, band: Band) -> pb.Band.ValueType:
    """UNSPECIFIED on all pieces but the last."""
    return pb.BAND_UNSPECIFIED if piece.finish_reason is None else _BANDS[band]


def usage(counted: Usage | None) -> pb.Usage | None:
    """The message of the counts, or nothing."""
    if counted is None:
        return None
    return pb.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        cached_tokens=counted.cached_tokens,
    )


def logprobs(positions: Iterable[PositionLogprobs]) -> list[pb.PositionLogprobs]:
    """The messages of some positions' log-probabilities."""
    return [
        pb.PositionLogprobs(chosen=_token(position.chosen), top=map(_token, position.top)) for position in positions
    ]


def model(card: ModelCard) -> pb.Model:
    """The message of one model."""
    return pb.Model(
        id=card.model_id,
        context_length=card.context_length,
        revision=card.revision,
        dtype=card.dtype,
        quantization=card.quantization,
        kv_dtype=card.kv_dtype,
    )


def session(found: Session) -> sessions_pb2.Session:
    """The message of one session."""
    record = found.record
    return sessions_pb2.Session(
        id=record.session_id,
        model=record.model_id,
        num_turns=record.num_turns,
        num_tokens=record.num_tokens,
        created_at=_timestamp(record.made_us),
        updated_at=_timestamp(record.updated_us),
        expires_at=_timestamp(round(record.ends_s * 1_000_000)),
        owner_present=found.owner_present,
        kv_bytes=record.residence.num_bytes,
        metadata=record.metadata,
        ttl_s=int(record.ttl_s),
    )


def _timestamp(time_us: int) -> Timestamp:
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def _said(index: int, message: pb.Message) -> Said:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidRequest(f"messages[{index}].role is {message.role}, which is no role", param="messages")
    calls = tuple(SaidCall(call.name, call.arguments, call.id) for call in message.tool_calls)
    return Said(role, message.content, calls, message.tool_call_id)


def _token(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, text=token.text, bytes=token.data, logprob=token.logprob or 0.0)
