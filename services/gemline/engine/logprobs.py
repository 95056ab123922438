"""Log-probabilities of chosen tokens and of the likeliest ones. Knows no request."""

from collections.abc import Sequence

import torch

from gemline.engine.blockwise import k_largest
from gemline.engine.events import Logprobs


def logprobs(logits_RV: torch.Tensor, token_ids: Sequence[int], num_likeliest: int) -> list[Logprobs]:
    """For each row those of its chosen token, then of the `num_likeliest` likeliest or of all that there are.

    Only the sum over the vocabulary and the numbers asked for are computed, not the whole log-softmax.
    """
    likeliest_RK = k_largest(logits_RV, min(num_likeliest, logits_RV.shape[-1])).indices
    chosen_R1 = torch.tensor(token_ids, device=logits_RV.device).unsqueeze(-1)
    named_RK = torch.cat((chosen_R1, likeliest_RK), dim=-1)
    best_R1 = logits_RV.amax(dim=-1, keepdim=True)
    total_R1 = (logits_RV - best_R1).exp_().sum(dim=-1, keepdim=True)
    values_RK = logits_RV.gather(-1, named_RK) - best_R1 - total_R1.log()
    return [
        Logprobs(tuple(ids), tuple(values)) for ids, values in zip(named_RK.tolist(), values_RK.tolist(), strict=True)
    ]
