"""From rows of logits whose vocabulary is divided among ranks to tokens, without any rank having a whole row.

Every rank does the same and learns the same tokens. What crosses are a few numbers a row: maxima, masses, the largest
weights where top_k or top_p cut, the chosen token. Only where the cut lies below all these (a flat distribution with
top_p near 1) is a row put together.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from gemline.engine.blockwise import first_largest, k_largest
from gemline.engine.draw import uniform
from gemline.engine.events import Logprobs
from gemline.engine.inversion import invert
from gemline.engine.sampling import Sampled, SampleRow, adjust_, weigh_
from gemline.engine.truncation import Edge, cut_, edge_among, find_edge
from gemline_kernels.vocabulary import Vocabulary

_CANDIDATES = 1024  # of each rank, where top_k does not ask for more


def choose_together(part_BV: torch.Tensor, rows: Sequence[SampleRow], vocabulary: Vocabulary) -> list[Sampled | None]:
    """A token for each row, as `sampling.sample` would choose it; `part_BV` are the logits of the rank's own tokens."""
    if not rows:
        return []
    part_BV = part_BV.cpu()
    logits_BV = adjust_(part_BV.clone(), [row.among(vocabulary.tokens) for row in rows])
    largest_B, likeliest_B = _likeliest(logits_BV, vocabulary)
    is_finite = largest_B.isfinite().tolist()
    token_ids = [token_id if usable else None for token_id, usable in zip(likeliest_B.tolist(), is_finite, strict=True)]
    warm = [index for index, row in enumerate(rows) if is_finite[index] and not row.params.greedy]
    if warm:
        warm_rows = [rows[index] for index in warm]
        weights_RV = weigh_(logits_BV[warm] - largest_B[warm, None], warm_rows)
        _truncate_(weights_RV, warm_rows, vocabulary)
        for index, token_id in zip(warm, _draw(weights_RV, warm_rows, vocabulary), strict=True):
            token_ids[index] = token_id
    found = logprobs_together(part_BV, token_ids, [row.params.num_logprobs for row in rows], vocabulary)
    return [
        None if token_id is None else Sampled(token_id, found.get(index)) for index, token_id in enumerate(token_ids)
    ]


def _likeliest(logits_BV: torch.Tensor, vocabulary: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logits, and the first tokens that have them."""
    own = first_largest(logits_BV)
    own_B2 = torch.stack((own.values.double(), own.indices + vocabulary.tokens.start), dim=-1)
    told_PB2 = vocabulary.ranks.gather(own_B2)
    best = first_largest(told_PB2[:, :, 0].T)
    token_B = told_PB2[:, :, 1].gather(0, best.indices[None]).squeeze(0)
    return best.values.float(), token_B.long()


def _truncate_(weights_RV: torch.Tensor, rows: Sequence[SampleRow], vocabulary: Vocabulary) -> None:
    """Makes 0 of what top_k and top_p leave out, in place."""
    cuts = [index for index, row in enumerate(rows) if row.params.top_p < 1 or 0 < row.params.top_k < vocabulary.size]
    if not cuts:
        return
    edges = _edges(weights_RV[cuts], [rows[index] for index in cuts], vocabulary)
    equal_R = torch.tensor([int((weights_RV[i] == edge.weight).sum()) for i, edge in zip(cuts, edges, strict=True)])
    before_R = vocabulary.ranks.gather(equal_R)[: vocabulary.ranks.rank].sum(dim=0)
    for index, edge, before in zip(cuts, edges, before_R.tolist(), strict=True):
        num_equal = None if edge.num_equal is None else max(0, edge.num_equal - before)
        cut_(weights_RV[index], Edge(edge.weight, num_equal))


def _edges(weights_RV: torch.Tensor, rows: Sequence[SampleRow], vocabulary: Vocabulary) -> list[Edge]:
    """Of each row; by the likeliest weights of all ranks where they are enough."""
    limits = [row.params.top_k if 0 < row.params.top_k < vocabulary.size else 0 for row in rows]
    num_told = min([max([_CANDIDATES, *limits]), *vocabulary.sizes])
    told_PRX = vocabulary.ranks.gather(k_largest(weights_RV, num_told).values)
    mass_PR = vocabulary.ranks.gather(weights_RV.sum(dim=-1, dtype=torch.float64))
    found: list[Edge | None] = []
    for index, (row, limit) in enumerate(zip(rows, limits, strict=True)):
        told_PX = told_PRX[:, index].numpy()
        hides = [size > num_told for size in vocabulary.sizes]
        over = max((float(told_X[-1]) for told_X, more in zip(told_PX, hides, strict=True) if more), default=-1.0)
        likeliest = np.sort(told_PX.ravel())[::-1]
        found.append(edge_among(likeliest, over, limit, row.params.top_p, float(mass_PR[:, index].sum())))
    lacking = [index for index, edge in enumerate(found) if edge is None]
    if lacking:
        for index, weights_V in zip(lacking, vocabulary.whole(weights_RV[lacking]), strict=True):
            found[index] = find_edge(weights_V.numpy(), limits[index], rows[index].params.top_p)
    return [edge or Edge(0.0) for edge in found]


def _draw(weights_RV: torch.Tensor, rows: Sequence[SampleRow], vocabulary: Vocabulary) -> list[int]:
    """The token at one share of each row's mass: first whose it is, then which it is."""
    mass_PR = vocabulary.ranks.gather(weights_RV.sum(dim=-1, dtype=torch.float64)).cumsum(dim=0)
    shares_R = torch.tensor([uniform(row.params.seed, row.position) for row in rows], dtype=torch.float64)
    target_R = torch.minimum(shares_R * mass_PR[-1], mass_PR[-1] * (1 - 2.0**-53))
    owner_R = torch.searchsorted(mass_PR.T.contiguous(), target_R[:, None], right=True).squeeze(-1)
    start_PR = pad(mass_PR, (0, 0, 1, 0))
    start_R = start_PR.gather(0, owner_R[None]).squeeze(0)
    own_R = start_PR.gather(0, owner_R[None] + 1).squeeze(0) - start_R
    drawn_R = invert(weights_RV, ((target_R - start_R) / own_R)[:, None]) + vocabulary.tokens.start
    return vocabulary.ranks.gather(drawn_R).gather(0, owner_R[None]).squeeze(0).tolist()


def logprobs_together(
    part_BV: torch.Tensor, token_ids: Sequence[int | None], wanted: Sequence[int | None], vocabulary: Vocabulary
) -> dict[int, Logprobs]:
    """By row, by the model's own distribution: of the token that is named, and of as many likeliest ones as are wanted.

    Nothing of a row without a token, or with None wanted.
    """
    chosen = {row: it for row, it in enumerate(token_ids) if it is not None and wanted[row] is not None}
    if not chosen:
        return {}
    logits_RV = part_BV[list(chosen)].double()
    num_told = min(max(wanted[row] or 0 for row in chosen), max(vocabulary.sizes))
    own = k_largest(logits_RV, min(num_told, logits_RV.shape[-1]))
    lacking = (0, num_told - own.values.shape[-1])
    at_R = torch.tensor(list(chosen.values()), device=part_BV.device) - vocabulary.tokens.start
    is_own_R = (at_R >= 0) & (at_R < logits_RV.shape[-1])
    named_R1 = logits_RV.gather(-1, torch.where(is_own_R, at_R, 0)[:, None])
    named_R1 = torch.where(is_own_R[:, None], named_R1, -math.inf)
    total_R1 = vocabulary.ranks.gather(logits_RV.logsumexp(-1, keepdim=True)).logsumexp(0)
    values_RK = vocabulary.ranks.gather(named_R1).amax(0) - total_R1
    likeliest_RX = torch.cat([*vocabulary.ranks.gather(pad(own.values, lacking, value=-math.inf))], dim=-1) - total_R1
    tokens_RX = torch.cat([*vocabulary.ranks.gather(pad(own.indices + vocabulary.tokens.start, lacking))], dim=-1)
    order_RX = likeliest_RX.argsort(dim=-1, descending=True, stable=True)
    found: dict[int, Logprobs] = {}
    for index, (row, token_id) in enumerate(chosen.items()):
        first_X = order_RX[index, : min(wanted[row] or 0, vocabulary.size)]
        ids, values = tokens_RX[index, first_X].tolist(), likeliest_RX[index, first_X].tolist()
        found[row] = Logprobs((token_id, *ids), (float(values_RK[index, 0]), *values))
    return found
