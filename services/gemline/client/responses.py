"""From the public API's response messages to plain data."""

from collections.abc import Iterable

from gemline.client.types import Completion, Model, Piece, PositionLogprobs, TokenLogprob, Usage
from gemline.v1 import inference_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def completion(response: pb.GenerateResponse | pb.ChatResponse) -> Completion:
    """A whole answer."""
    return Completion(
        request_id=response.request_id,
        text=response.text if isinstance(response, pb.GenerateResponse) else response.message.content,
        finish_reason=finish_reason(response.finish_reason) or "unknown",
        usage=_usage(response.usage),
        logprobs=_logprobs(response.logprobs),
    )


def piece(response: pb.GenerateStreamResponse | pb.ChatStreamResponse) -> Piece:
    """What is new in a streamed answer."""
    return Piece(
        text=response.text,
        logprobs=_logprobs(response.logprobs),
        finish_reason=finish_reason(response.finish_reason),
        usage=_usage(response.usage) if response.HasField("usage") else None,
    )


def finish_reason(value: pb.FinishReason.ValueType) -> str | None:
    """Its name, "unknown" for one that a later version added, None while the answer goes on."""
    return None if value == pb.FINISH_REASON_UNSPECIFIED else _FINISH_REASONS.get(value, "unknown")


def models(response: pb.ListModelsResponse) -> tuple[Model, ...]:
    """What the caller may ask for."""
    return tuple(
        Model(model.id, model.context_length, model.revision, model.dtype, model.quantization)
        for model in response.models
    )


def _usage(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _logprobs(positions: Iterable[pb.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token(position.chosen), tuple(_token(token) for token in position.top))
        for position in positions
    )


def _token(token: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token.token_id, token.text, token.bytes, token.logprob)
