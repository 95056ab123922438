"""Which tokens a decoder can choose: those that hang on their logits and a `Choice` alone. Knows no scheduler."""

from collections.abc import Sequence
from typing import Protocol

import torch

from gemline.engine.params import SamplingParams
from gemline.engine.sampling import Masks, Sampled, SampleRow
from gemline_kernels.decoding import Choice, Decoder


class Chosen(Protocol):
    """Whose token it is."""

    @property
    def params(self) -> SamplingParams:
        """What its request wants."""

    @property
    def matcher(self) -> Masks | None:
        """Of a constrained answer."""


def is_chosen_by_logits(whose: Chosen) -> bool:
    """Whether nothing else has a say in the next token, and nothing else is asked for."""
    params = whose.params
    return not (params.penalized or params.logit_bias or whose.matcher is not None or params.num_logprobs is not None)


def choice(params: SamplingParams, position: int) -> Choice:
    """How the token at that position is chosen."""
    return Choice(position, params.temperature, params.top_k, params.top_p, params.min_p, params.seed)


def choose_there(decoder: Decoder | None, logits_BV: torch.Tensor, rows: Sequence[SampleRow]) -> list[Sampled | None]:
    """A token for each row, where the logits are. Nothing where there is no decoder, or it cannot choose them all."""
    if decoder is None or not rows or not all(map(is_chosen_by_logits, rows)):
        return []
    return list(map(sampled, decoder.choose(logits_BV, [choice(row.params, row.position) for row in rows])))


def sampled(token_id: int | None) -> Sampled | None:
    """What a decoder chose."""
    return None if token_id is None else Sampled(token_id, None)
