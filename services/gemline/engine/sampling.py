"""From rows of logits to tokens. Knows no sequence and no cache.

A sampled token is the inverse of the distribution's cumulative function at one uniform number, tokens in the order of
their ids: rounding that differs between two workers then moves a boundary by as little, and hardly ever a token.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gemline.engine.draw import uniform
from gemline.engine.events import Logprobs
from gemline.engine.inversion import invert
from gemline.engine.params import SamplingParams
from gemline.engine.truncation import keep_likeliest

_ELEMENTS_AT_ONCE = 2**19  # two rows of Gemma's vocabulary: larger copies fall out of the processor's cache
_COLDEST = 1e-30  # a colder temperature is greedy all the same, and is 0 in float32


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How the token at `position` of one sequence is chosen; the last two are for penalties alone."""

    params: SamplingParams
    position: int
    prompt_ids: Collection[int] = ()
    answer_counts: Mapping[int, int] | None = None

    @property
    def plain(self) -> bool:
        """Whether the token is the likeliest by the model's own logits."""
        return self.params.greedy and not self.params.penalized and not self.params.logit_bias


class Sampled(NamedTuple):
    """A chosen token."""

    token_id: int
    logprobs: Logprobs | None


def sample(logits_BV: torch.Tensor, rows: SequenceOf[SampleRow]) -> list[Sampled | None]:
    """One token for each row of float32 logits, which stay as they are.

    None for a row whose maximum is no finite number, as it came or after bias and penalties.
    """
    if not rows:
        return []
    token_ids = _likeliest(logits_BV)
    others = [index for index, row in enumerate(rows) if token_ids[index] is not None and not row.plain]
    at_once = max(1, _ELEMENTS_AT_ONCE // logits_BV.shape[-1])
    for start in range(0, len(others), at_once):
        indices = others[start : start + at_once]
        chosen = _choose(logits_BV[indices], [rows[index] for index in indices])
        for index, token_id in zip(indices, chosen, strict=True):
            token_ids[index] = token_id
    return [
        None if token_id is None else Sampled(token_id, _logprobs(logits_V, token_id, row.params.num_logprobs))
        for logits_V, token_id, row in zip(logits_BV, token_ids, rows, strict=True)
    ]


def _likeliest(logits_BV: torch.Tensor) -> list[int | None]:
    """For each row the first token of the highest logit; None where that is no finite number."""
    best_B = logits_BV.max(dim=-1)  # NaN if there is one in the row
    finite: list[bool] = torch.isfinite(best_B.values).tolist()
    token_ids: list[int] = best_B.indices.tolist()
    return [token_id if usable else None for token_id, usable in zip(token_ids, finite, strict=True)]


def _choose(logits_RV: torch.Tensor, rows: list[SampleRow]) -> list[int | None]:
    """Tokens by all that `params` say; changes the logits."""
    for logits_V, row in zip(logits_RV, rows, strict=True):
        _bias_(logits_V, row.params.logit_bias)
        _penalize_(logits_V, row)
    chosen = _likeliest(logits_RV)
    warm = [index for index, row in enumerate(rows) if chosen[index] is not None and not row.params.greedy]
    if warm:
        drawn = _draw(logits_RV[warm] if len(warm) < len(rows) else logits_RV, [rows[index] for index in warm])
        for index, token_id in zip(warm, drawn, strict=True):
            chosen[index] = token_id
    return chosen


def _bias_(logits_V: torch.Tensor, logit_bias: Mapping[int, float]) -> None:
    if logit_bias:
        logits_V[_ids(logit_bias, logits_V)] += logits_V.new_tensor(list(logit_bias.values()))


def _penalize_(logits_V: torch.Tensor, row: SampleRow) -> None:
    """Repetition divides a positive logit and multiplies a negative one (Keskar et al., 2019); the others subtract."""
    params, counts = row.params, row.answer_counts or {}
    if params.repetition_penalty != 1.0:
        seen = _ids({*row.prompt_ids, *counts}, logits_V)
        factors = logits_V.new_tensor([params.repetition_penalty])
        logits_V[seen] *= torch.where(logits_V[seen] > 0, 1 / factors, factors)
    if counts and (params.presence_penalty or params.frequency_penalty):
        times = logits_V.new_tensor(list(counts.values()))
        logits_V[_ids(counts, logits_V)] -= params.presence_penalty + params.frequency_penalty * times


def _ids(token_ids: Collection[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(token_ids), dtype=torch.int64, device=like.device)


def _draw(logits_RV: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """Temperature, min_p, top_k, top_p, and one draw for each row; changes the logits."""
    params = [row.params for row in rows]
    # The likeliest token gets 0, so weight 1: no temperature overflows, and min_p is a bound on the weight.
    temperature_R1 = _column([max(p.temperature, _COLDEST) for p in params], logits_RV)
    scaled_RV = logits_RV.sub_(logits_RV.amax(dim=-1, keepdim=True)).div_(temperature_R1)
    if any(p.min_p for p in params):
        scaled_RV.masked_fill_(scaled_RV < _column([p.min_p for p in params], logits_RV).log(), -torch.inf)
    narrow = [index for index, p in enumerate(params) if p.top_k or p.top_p < 1.0]
    if narrow:
        top_k, top_p = [params[index].top_k for index in narrow], [params[index].top_p for index in narrow]
        scaled_RV[narrow] = keep_likeliest(scaled_RV[narrow], top_k, top_p)
    shares = [uniform(row.params.seed, row.position) for row in rows]
    shares_R1 = torch.tensor(shares, dtype=torch.float64, device=logits_RV.device).unsqueeze(-1)
    drawn: list[int] = invert(scaled_RV.exp_(), shares_R1).tolist()
    return drawn


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """One number for each row."""
    return like.new_tensor(values).unsqueeze(-1)


def _logprobs(logits_V: torch.Tensor, token_id: int, num_likeliest: int | None) -> Logprobs | None:
    """Of the chosen token and the likeliest, by the model's own distribution: before bias, penalties, temperature."""
    if num_likeliest is None:
        return None
    likeliest = logits_V.topk(min(num_likeliest, len(logits_V)))
    token_ids = (token_id, *likeliest.indices.tolist())
    values_N = logits_V[list(token_ids)] - logits_V.logsumexp(dim=0)
    return Logprobs(token_ids, tuple(values_N.tolist()))
