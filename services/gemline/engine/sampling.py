"""From rows of logits to tokens. Knows no sequence and no cache.

A sampled token is the inverse of the distribution's cumulative function at one uniform number, tokens in the order of
their ids: rounding that differs between two workers then moves a boundary by as little, and hardly ever a token.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch

from gemline.engine.adjust import bias_, penalize_
from gemline.engine.blockwise import first_largest
from gemline.engine.draw import uniform
from gemline.engine.events import Logprobs
from gemline.engine.history import History
from gemline.engine.inversion import invert
from gemline.engine.logprobs import logprobs
from gemline.engine.masking import mask_row_
from gemline.engine.params import SamplingParams
from gemline.engine.truncation import keep_from_, truncate_

_ELEMENTS_AT_ONCE = 2**19  # two rows of Gemma's vocabulary: larger copies fall out of the processor's cache
_COLDEST = 1e-30  # a colder temperature is greedy all the same, and is 0 in float32


@dataclass(frozen=True, slots=True)
class _Masked:
    """What a constraint allows at one position."""

    allowed: bytes | None

    def mask(self) -> bytes | None:
        """As `Matcher` says."""
        return self.allowed

    def among(self, tokens: range) -> Self:
        """Of these tokens alone."""
        if self.allowed is None:
            return self
        bits = np.unpackbits(np.frombuffer(self.allowed, np.uint8), bitorder="little")[tokens.start : tokens.stop]
        return replace(self, allowed=np.packbits(bits, bitorder="little").tobytes())


class Masks(Protocol):
    """What is asked of a constraint here; see `constraint.Matcher`."""

    def mask(self) -> bytes | None:
        """One bit for each token."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How the token at `position` of one sequence is chosen; the history is for penalties alone."""

    params: SamplingParams
    position: int
    history: History = field(default_factory=History)
    matcher: Masks | None = None  # of a constrained answer

    def told(self) -> Self:
        """The same without a constraint that lives in this process: its mask instead."""
        return self if self.matcher is None else replace(self, matcher=_Masked(self.matcher.mask()))

    def among(self, tokens: range) -> Self:
        """The same for logits of these tokens alone. Its constraint must be told."""
        if not self.adjusted:
            return self
        bias = {token_id - tokens.start: it for token_id, it in self.params.logit_bias.items() if token_id in tokens}
        matcher = self.matcher.among(tokens) if isinstance(self.matcher, _Masked) else None
        params = replace(self.params, logit_bias=bias)
        return replace(self, params=params, history=self.history.among(tokens), matcher=matcher)

    @property
    def adjusted(self) -> bool:
        """Whether the model's own logits are changed before the choice."""
        return self.params.penalized or bool(self.params.logit_bias) or self.matcher is not None


class Sampled(NamedTuple):
    """A chosen token."""

    token_id: int
    logprobs: Logprobs | None


def sample(logits_BV: torch.Tensor, rows: SequenceOf[SampleRow]) -> list[Sampled | None]:
    """One token for each row of float32 logits, which stay as they are.

    None for a row whose maximum is no finite number, as it came or after bias, penalties and constraint.
    """
    token_ids: list[int | None] = [None] * len(rows)
    as_they_came = [index for index, row in enumerate(rows) if not row.adjusted]
    if as_they_came:
        _set(token_ids, as_they_came, _choose(_take(logits_BV, as_they_came), [rows[i] for i in as_they_came]))
    groups = _groups([index for index, row in enumerate(rows) if row.adjusted], logits_BV.shape[-1])
    copy_RV = _room(logits_BV, groups)
    for indices in groups:
        adjusted = [rows[index] for index in indices]
        logits_RV = torch.index_select(logits_BV, 0, torch.tensor(indices), out=copy_RV[: len(indices)])
        _set(token_ids, indices, _choose(adjust_(logits_RV, adjusted), adjusted))
    found = _logprobs(logits_BV, token_ids, [row.params.num_logprobs for row in rows])
    return [
        None if token_id is None else Sampled(token_id, found.get(index)) for index, token_id in enumerate(token_ids)
    ]


def adjust_(logits_RV: torch.Tensor, rows: SequenceOf[SampleRow]) -> torch.Tensor:
    """By bias, penalties and constraints; changes the logits."""
    params = [row.params for row in rows]
    bias_(logits_RV, params)
    penalize_(logits_RV, params, [row.history for row in rows])
    for logits_V, row in zip(logits_RV, rows, strict=True):
        if row.matcher is not None:
            mask_row_(logits_V, row.matcher.mask())
    return logits_RV


def _choose(logits_RV: torch.Tensor, rows: SequenceOf[SampleRow]) -> list[int | None]:
    """The likeliest token, or a drawn one; None where the maximum is no finite number."""
    best = first_largest(logits_RV)
    likeliest: list[int] = best.indices.tolist()
    finite: list[bool] = best.values.isfinite().tolist()
    token_ids = [token_id if usable else None for token_id, usable in zip(likeliest, finite, strict=True)]
    warm = [index for index, row in enumerate(rows) if finite[index] and not row.params.greedy]
    groups = _groups(warm, logits_RV.shape[-1])
    weights_RV = _room(logits_RV, groups)
    for indices in groups:
        scaled_RV = torch.sub(_take(logits_RV, indices), best.values[indices, None], out=weights_RV[: len(indices)])
        _set(token_ids, indices, _draw_(scaled_RV, [rows[index] for index in indices]))
    return token_ids


def weigh_(logits_RV: torch.Tensor, rows: SequenceOf[SampleRow]) -> torch.Tensor:
    """Weights of tokens by temperature and min_p, in the place of logits whose largest must be 0.

    The likeliest token gets weight 1: no temperature overflows, and min_p is a bound on the weight.
    """
    temperature_R = logits_RV.new_tensor([max(row.params.temperature, _COLDEST) for row in rows])
    weights_RV = logits_RV.div_(temperature_R.unsqueeze(-1)).exp_()
    for weights_V, row in zip(weights_RV, rows, strict=True):
        if row.params.min_p:
            keep_from_(weights_V, row.params.min_p)
    return weights_RV


def _draw_(logits_RV: torch.Tensor, rows: SequenceOf[SampleRow]) -> list[int]:
    """Temperature, min_p, top_k, top_p, and one draw for each row, whose maximum must be 0; changes the logits."""
    weights_RV = weigh_(logits_RV, rows)
    for weights_V, row in zip(weights_RV, rows, strict=True):
        if row.params.top_k or row.params.top_p < 1.0:
            truncate_(weights_V, row.params.top_k, row.params.top_p)
    shares = [uniform(row.params.seed, row.position) for row in rows]
    shares_R1 = torch.tensor(shares, dtype=torch.float64, device=logits_RV.device).unsqueeze(-1)
    drawn: list[int] = invert(weights_RV, shares_R1).tolist()
    return drawn


def _logprobs(
    logits_BV: torch.Tensor, token_ids: SequenceOf[int | None], wanted: SequenceOf[int | None]
) -> dict[int, Logprobs]:
    """By row, by the model's own distribution: before bias, penalties, temperature."""
    found: dict[int, Logprobs] = {}
    for num_likeliest in {number for number in wanted if number is not None}:
        chosen = {row: token_id for row, token_id in enumerate(token_ids) if token_id is not None}
        named = [row for row in chosen if wanted[row] == num_likeliest]
        for indices in _groups(named, logits_BV.shape[-1]):
            of_rows = logprobs(_take(logits_BV, indices), [chosen[index] for index in indices], num_likeliest)
            found.update(zip(indices, of_rows, strict=True))
    return found


def _groups(indices: list[int], vocab_size: int) -> list[list[int]]:
    """The rows, as many at a time as the processor's cache holds."""
    at_once = max(1, _ELEMENTS_AT_ONCE // vocab_size)
    return [indices[start : start + at_once] for start in range(0, len(indices), at_once)]


def _room(x_BV: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """One piece of memory for the rows of each group in turn: a new one each time is zeroed by the system first, which
    takes as long as the rest."""
    return x_BV.new_empty((len(groups[0]) if groups else 0, x_BV.shape[-1]))


def _take(x_BV: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Those rows; a view where they are neighbours."""
    start, stop = indices[0], indices[-1] + 1
    return x_BV[start:stop] if stop - start == len(indices) else x_BV[indices]


def _set(token_ids: list[int | None], indices: SequenceOf[int], values: SequenceOf[int | None]) -> None:
    for index, value in zip(indices, values, strict=True):
        token_ids[index] = value
