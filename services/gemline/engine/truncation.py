"""Which tokens top_k and top_p leave of a distribution. Knows no request."""

from collections.abc import Sequence

import torch

_NUM_LIKELIEST = 1024  # hold the mass of almost every top_p; only where they do not is the whole vocabulary sorted


def keep_likeliest(scaled_RV: torch.Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> torch.Tensor:
    """The logits with -inf for all but the tokens that top_k (0: all) and then top_p (1: all) leave, row by row.

    top_p leaves the fewest likeliest tokens whose share of what top_k left is at least top_p. Of equal tokens at the
    edge those of lower id stay, so that top_k 1 is greedy. Rows must have the maximum 0.
    """
    vocab_size = scaled_RV.shape[-1]
    limits = [min(k, vocab_size) or vocab_size for k in top_k]
    limit_R1 = torch.tensor(limits, device=scaled_RV.device).unsqueeze(-1)
    top_p_R1 = torch.tensor(top_p, dtype=torch.float64, device=scaled_RV.device).unsqueeze(-1)
    width = min(vocab_size, max(limit if limit < vocab_size else _NUM_LIKELIEST for limit in limits))
    likeliest_RC = scaled_RV.topk(width).values
    num_kept_R1 = _num_kept(scaled_RV, likeliest_RC, limit_R1, top_p_R1)
    if width < vocab_size and bool(((num_kept_R1 == width) & (limit_R1 > width)).any()):
        likeliest_RC = scaled_RV.sort(descending=True).values
        num_kept_R1 = _num_kept(scaled_RV, likeliest_RC, limit_R1, top_p_R1)
    return _keep(scaled_RV, likeliest_RC.gather(-1, num_kept_R1 - 1), num_kept_R1)


def _num_kept(
    scaled_RV: torch.Tensor, likeliest_RC: torch.Tensor, limit_R1: torch.Tensor, top_p_R1: torch.Tensor
) -> torch.Tensor:
    """How many of the C likeliest stay; C where more might."""
    width = likeliest_RC.shape[-1]
    within_RC = torch.arange(width, device=scaled_RV.device) < limit_R1
    mass_RC = likeliest_RC.exp().to(torch.float64) * within_RC
    whole_R1 = scaled_RV.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    total_R1 = torch.where(limit_R1 > width, whole_R1, mass_RC.sum(dim=-1, keepdim=True))
    before_RC = mass_RC.cumsum(dim=-1) - mass_RC
    kept_RC = within_RC & ((top_p_R1 >= 1.0) | (before_RC < top_p_R1 * total_R1))
    return kept_RC.sum(dim=-1, keepdim=True).clamp(min=1)


def _keep(scaled_RV: torch.Tensor, edge_R1: torch.Tensor, num_kept_R1: torch.Tensor) -> torch.Tensor:
    kept_RV = scaled_RV >= edge_R1
    if bool((kept_RV.sum(dim=-1, keepdim=True) > num_kept_R1).any()):
        above_RV = scaled_RV > edge_R1
        num_tied_R1 = num_kept_R1 - above_RV.sum(dim=-1, keepdim=True)
        kept_RV = above_RV | (kept_RV & ((kept_RV & ~above_RV).cumsum(dim=-1) <= num_tied_R1))
    return scaled_RV.masked_fill(~kept_RV, -torch.inf)
