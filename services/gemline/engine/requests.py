"""What an engine is asked to do, and whether a model can do it. Knows no torch."""

from collections.abc import Collection
from dataclasses import dataclass

from gemline.engine.config import Gemma2Config
from gemline.engine.constraint import Matcher
from gemline.engine.params import SamplingParams
from gemline.errors import ContextLengthExceeded, InvalidRequest

# The gateway holds users to narrower ranges. These keep a wrong number from the rest of its batch.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1e9),
    "top_k": (0, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "seed": (0, 2**64 - 1),
    "repetition_penalty": (1e-9, 1e9),
    "presence_penalty": (-1e9, 1e9),
    "frequency_penalty": (-1e9, 1e9),
    "num_logprobs": (0, 2**31),
}


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to go on with, under a number that no other live sequence of the engine has.

    `params.max_tokens` counts every token after the prompt, those among `token_ids` that were generated elsewhere too.
    """

    seq_id: int
    token_ids: tuple[int, ...]  # of the prompt, and of what was generated before
    num_prompt_tokens: int  # of them; the rest were generated
    params: SamplingParams
    hold: bool = False  # only prefill, and keep the blocks until cancelled, so that another worker can fetch them
    cache_salt: bytes = b""  # of its tenant, who alone shares blocks with it; empty: nothing is shared
    num_public_tokens: int = 0  # of its first tokens, those of a public prefix: whoever begins so shares their blocks
    matcher: Matcher | None = None  # of `params.constraint`, behind what was generated; who asks for one brings it


def check_request(request: EngineRequest, config: Gemma2Config) -> None:
    """Raises InvalidRequest, naming the field, when the model could never serve the request."""
    num_prompt, params = request.num_prompt_tokens, request.params
    if not 1 <= num_prompt <= len(request.token_ids):
        raise InvalidRequest(
            f"num_prompt_tokens must be from 1 to the {len(request.token_ids)} token ids given, is {num_prompt}",
            param="prompt",
        )
    _check_ids(request.token_ids, config.vocab_size, "prompt")
    _check_ids(params.logit_bias, config.vocab_size, "logit_bias")
    _check_ranges(params)
    if params.constraint is not None and request.matcher is None:
        raise InvalidRequest("this engine reads no constraints", param=params.constraint.param)
    num_generated = len(request.token_ids) - num_prompt
    if params.max_tokens <= num_generated:
        raise InvalidRequest(
            f"max_tokens must be over the {num_generated} tokens generated already, is {params.max_tokens}",
            param="max_tokens",
        )
    if num_prompt + params.max_tokens > config.max_position_embeddings:
        raise ContextLengthExceeded(
            f"the model's context is {config.max_position_embeddings} tokens;"
            f" the prompt has {num_prompt} and max_tokens is {params.max_tokens}",
            param="max_tokens",
        )


def _check_ranges(params: SamplingParams) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name} must be from {low} to {high}, is {value}", param=name)
    for token_id, bias in params.logit_bias.items():
        if not -1e9 <= bias <= 1e9:
            raise InvalidRequest(
                f"logit_bias of token {token_id} must be from -1e9 to 1e9, is {bias}", param="logit_bias"
            )


def _check_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    if not token_ids:
        return
    for extreme in (min(token_ids), max(token_ids)):
        if not 0 <= extreme < vocab_size:
            raise InvalidRequest(f"token id {extreme} is not in the vocabulary of {vocab_size}", param=param)
