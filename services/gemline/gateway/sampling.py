"""From what a user set to what an engine needs: every default filled in, every range checked. Pure."""

import secrets
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from gemline.cluster.records import ModelCard
from gemline.engine.params import SamplingParams
from gemline.errors import ContextLengthExceeded, InvalidRequest
from gemline.gateway.requests import SamplingOptions

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
# A temperature below this is greedy: capped logits differ by at most 60, and 60 / 1e-4 already leaves one token.
MIN_TEMPERATURE = 1e-4
# The smallest float of 32 bits that is not denormal: what is below it would reach the engine as 0.
MIN_FLOAT32 = 2.0**-126

_T = TypeVar("_T")


class Range(NamedTuple):
    """What a number may be, both ends included; `above`: the least value of a range that is open below."""

    low: float
    high: float
    above: float | None = None

    @property
    def least(self) -> float:
        """The least that is taken."""
        return self.low if self.above is None else self.above


# Of the fields of SamplingOptions, in the order in which they are checked. The OpenAPI document shows them too.
RANGES: dict[str, Range] = {
    "temperature": Range(0, 2),
    "top_k": Range(0, 2**31 - 1),
    "top_p": Range(0, 1, above=MIN_FLOAT32),
    "min_p": Range(0, 1),
    "seed": Range(-(2**63), 2**64 - 1),
    "repetition_penalty": Range(0.001, 1000),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "logprobs": Range(0, 20),
}
BIAS_RANGE = Range(-100, 100)


def resolve_sampling(
    options: SamplingOptions, card: ModelCard, num_prompt_tokens: int, *, prompt_param: str = "prompt"
) -> SamplingParams:
    """What the engine needs for a prompt of that length on this model.

    The options have passed `check_sampling`; `prompt_param` is what the user calls the prompt. Raises
    ContextLengthExceeded with both numbers.
    """
    temperature = _or(options.temperature, 1.0)
    return SamplingParams(
        # With nothing to generate, one token is: an engine gives a prompt's log-probabilities with the first one.
        max_tokens=_max_tokens(
            options.max_tokens or (1 if options.max_tokens == 0 else None), card, num_prompt_tokens, prompt_param
        ),
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_k=_or(options.top_k, 0),
        top_p=_or(options.top_p, 1.0),
        min_p=_or(options.min_p, 0.0),
        seed=secrets.randbits(64) if options.seed is None else options.seed % 2**64,
        repetition_penalty=_or(options.repetition_penalty, 1.0),
        presence_penalty=_or(options.presence_penalty, 0.0),
        frequency_penalty=_or(options.frequency_penalty, 0.0),
        logit_bias=dict(options.logit_bias),
        stop_token_ids=_stop_token_ids(options, card),
        num_logprobs=options.logprobs,
        constraint=options.constraint,
        prompt_logprobs=options.echo and options.logprobs is not None,
    )


def check_sampling(options: SamplingOptions, card: ModelCard) -> None:
    """All that can be refused before the prompt was read; raises InvalidRequest naming field, value and range."""
    least = 0 if options.echo else 1
    if options.max_tokens is not None and options.max_tokens < least:
        raise InvalidRequest(f"max_tokens must be at least {least}, not {options.max_tokens}", param="max_tokens")
    for name, allowed in RANGES.items():
        _check_range(name, getattr(options, name), allowed)
    _check_stops(options.stop)
    if options.constraint is not None and options.ignore_eos:
        message = f"ignore_eos cannot be set beside {options.constraint.param}: such an answer ends where it must"
        raise InvalidRequest(message, param="ignore_eos")
    _check_count("stop_token_ids", len(options.stop_token_ids), MAX_STOP_TOKEN_IDS)
    check_token_ids("stop_token_ids", options.stop_token_ids, card.vocab_size)
    _check_count("logit_bias", len(options.logit_bias), MAX_LOGIT_BIAS)
    check_token_ids("logit_bias", options.logit_bias, card.vocab_size)
    for bias in options.logit_bias.values():
        _check_range("logit_bias", bias, BIAS_RANGE)


def check_token_ids(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises InvalidRequest naming the first id that is not in the vocabulary."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            message = f"{param}: token id {token_id} is not in the vocabulary of {vocab_size} tokens"
            raise InvalidRequest(message, param=param)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _max_tokens(asked: int | None, card: ModelCard, num_prompt_tokens: int, prompt_param: str) -> int:
    room = card.context_length - num_prompt_tokens
    context = f"{card.model_id} has a context of {card.context_length} tokens"
    if room < 1:
        message = f"the prompt has {num_prompt_tokens} tokens, but {context} and the answer needs at least one of them"
        raise ContextLengthExceeded(message, param=prompt_param)
    if asked is not None and asked > room:
        total = num_prompt_tokens + asked
        message = f"the prompt has {num_prompt_tokens} tokens and max_tokens is {asked}: {total} in all, but {context}"
        raise ContextLengthExceeded(message, param="max_tokens")
    return room if asked is None else asked


def _stop_token_ids(options: SamplingOptions, card: ModelCard) -> frozenset[int]:
    chosen = frozenset(options.stop_token_ids)
    return chosen if options.ignore_eos else chosen.union(card.stop_token_ids)


def _check_range(name: str, value: float | None, allowed: Range) -> None:
    """Written so that NaN is in no range."""
    if value is None or allowed.least <= value <= allowed.high:
        return
    is_open = allowed.above is not None
    bounds = f"{'above' if is_open else 'from'} {allowed.low:g} {'and at most' if is_open else 'to'} {allowed.high:g}"
    raise InvalidRequest(f"{name} must be {bounds}, not {value}", param=name)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"{name} has {count} entries; at most {most} are taken", param=name)


def _check_stops(stops: tuple[str, ...]) -> None:
    _check_count("stop", len(stops), MAX_STOPS)
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            message = f"stop: a string must have from 1 to {MAX_STOP_CHARS} characters, not {len(stop)}"
            raise InvalidRequest(message, param="stop")
