"""From the public API's response messages to plain data."""

from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gemline.client.types import (
    Completion,
    Model,
    Piece,
    PositionLogprobs,
    SessionInfo,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import sessions_pb2

StreamResponse = pb.GenerateStreamResponse | pb.ChatStreamResponse | sessions_pb2.ChatSessionResponse

_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_BANDS = {pb.BAND_PRIORITY: "priority", pb.BAND_DEFAULT: "default", pb.BAND_BATCH: "batch"}


def completion(response: pb.GenerateResponse | pb.ChatResponse) -> Completion:
    """A whole answer."""
    calls = () if isinstance(response, pb.GenerateResponse) else response.message.tool_calls
    return Completion(
        request_id=response.request_id,
        text=response.text if isinstance(response, pb.GenerateResponse) else response.message.content,
        finish_reason=finish_reason(response.finish_reason) or "unknown",
        usage=_usage(response.usage),
        logprobs=_logprobs(response.logprobs),
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in calls),
        band=_BANDS.get(response.band),
    )


def piece(response: StreamResponse) -> Piece:
    """What is new in a streamed answer."""
    deltas = () if isinstance(response, pb.GenerateStreamResponse) else response.tool_calls
    return Piece(
        text=response.text,
        logprobs=_logprobs(response.logprobs),
        finish_reason=finish_reason(response.finish_reason),
        usage=_usage(response.usage) if response.HasField("usage") else None,
        tool_calls=tuple(ToolCallDelta(delta.index, delta.id, delta.name, delta.arguments) for delta in deltas),
        band=_BANDS.get(response.band),
    )


def finish_reason(value: pb.FinishReason.ValueType) -> str | None:
    """Its name, "unknown" for one that a later version added, None while the answer goes on."""
    return None if value == pb.FINISH_REASON_UNSPECIFIED else _FINISH_REASONS.get(value, "unknown")


def models(response: pb.ListModelsResponse) -> tuple[Model, ...]:
    """What the caller may ask for."""
    return tuple(
        Model(model.id, model.context_length, model.revision, model.dtype, model.quantization, model.kv_dtype)
        for model in response.models
    )


def session(message: sessions_pb2.Session) -> SessionInfo:
    """What the gateway tells of a session."""
    return SessionInfo(
        id=message.id,
        model=message.model,
        num_turns=message.num_turns,
        num_tokens=message.num_tokens,
        created_at=_time(message.created_at),
        updated_at=_time(message.updated_at),
        expires_at=_time(message.expires_at),
        ttl_s=message.ttl_s,
        owner_present=message.owner_present,
        kv_bytes=message.kv_bytes,
        metadata=dict(message.metadata),
    )


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _usage(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _logprobs(positions: Iterable[pb.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token(position.chosen), tuple(_token(token) for token in position.top))
        for position in positions
    )


def _token(token: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.text, token.bytes, token.logprob)
