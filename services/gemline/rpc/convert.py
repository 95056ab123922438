"""Between the words of the engine and the messages on our wires. The one file that knows both; decides nothing."""

from __future__ import annotations  # an enum's ValueType is in the stubs alone

from gemline import errors
from gemline.engine.constraint import Constraint, Syntax
from gemline.engine.events import FinishReason, Logprobs
from gemline.engine.params import SamplingParams
from gemline.internal.v1 import decode_pb2, sampling_pb2

_FINISH_TO_PROTO = {
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
}
_SYNTAX_TO_PROTO = {
    Syntax.JSON_SCHEMA: sampling_pb2.SYNTAX_JSON_SCHEMA,
    Syntax.REGEX: sampling_pb2.SYNTAX_REGEX,
    Syntax.GRAMMAR: sampling_pb2.SYNTAX_GRAMMAR,
}
_SYNTAX_FROM_PROTO = {message: syntax for syntax, message in _SYNTAX_TO_PROTO.items()}
_FINISH_FROM_PROTO = {message: reason for reason, message in _FINISH_TO_PROTO.items()}


def sampling_to_proto(params: SamplingParams) -> sampling_pb2.SamplingParams:
    """The message of `params`. Its floats have 32 bits, so whoever reads it draws the same, wherever it runs."""
    return sampling_pb2.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        stop_token_ids=sorted(params.stop_token_ids),
        num_logprobs=params.num_logprobs,
        prompt_logprobs=params.prompt_logprobs,
        constraint=None if params.constraint is None else _constraint_to_proto(params.constraint),
    )


def sampling_from_proto(message: sampling_pb2.SamplingParams) -> SamplingParams:
    """The parameters that `sampling_to_proto` wrote."""
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        seed=message.seed,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=dict(message.logit_bias),
        stop_token_ids=frozenset(message.stop_token_ids),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        prompt_logprobs=message.prompt_logprobs,
        constraint=_constraint_from_proto(message.constraint) if message.HasField("constraint") else None,
    )


def _constraint_to_proto(constraint: Constraint) -> sampling_pb2.Constraint:
    return sampling_pb2.Constraint(
        syntax=_SYNTAX_TO_PROTO[constraint.syntax],
        text=constraint.text,
        param=constraint.param,
        lenient=constraint.lenient,
    )


def _constraint_from_proto(message: sampling_pb2.Constraint) -> Constraint:
    """Raises InvalidRequest for a syntax that only a newer gateway knows."""
    syntax = _SYNTAX_FROM_PROTO.get(message.syntax)
    if syntax is None:
        raise errors.InvalidRequest(f"this worker knows no constraint of kind {message.syntax}", param=message.param)
    return Constraint(syntax, message.text, message.param, message.lenient)


def logprobs_to_proto(logprobs: Logprobs) -> sampling_pb2.Logprobs:
    """The message of one position's log-probabilities."""
    return sampling_pb2.Logprobs(token_ids=logprobs.token_ids, values=logprobs.values)


def logprobs_from_proto(message: sampling_pb2.Logprobs) -> Logprobs | None:
    """What `logprobs_to_proto` wrote; None for an empty message, which is how "not asked for" travels."""
    if not message.token_ids:
        return None
    return Logprobs(token_ids=tuple(message.token_ids), values=tuple(message.values))


def finish_to_proto(finish: FinishReason | None) -> sampling_pb2.FinishReason.ValueType:
    """The message's enum; UNSPECIFIED while the sequence goes on."""
    return sampling_pb2.FINISH_REASON_UNSPECIFIED if finish is None else _FINISH_TO_PROTO[finish]


def finish_from_proto(value: sampling_pb2.FinishReason.ValueType) -> FinishReason | None:
    """The reason, or None while the sequence goes on; one that only a newer worker knows ends it all the same."""
    if value == sampling_pb2.FINISH_REASON_UNSPECIFIED:
        return None
    return _FINISH_FROM_PROTO.get(value, FinishReason.STOP)


def error_from_proto(message: decode_pb2.Error) -> errors.GemlineError:
    """The error that ended a request."""
    return errors.from_code(message.code, message.message, param=message.param or None)
