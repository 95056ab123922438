"""The token at a given share of a distribution's mass: the inverse of its cumulative function. Knows no request."""

import torch
from torch.nn.functional import pad

from gemline.engine.blockwise import blocks

_JUST_UNDER_1 = 1.0 - 2.0**-53


def invert(weights_RV: torch.Tensor, shares_R1: torch.Tensor) -> torch.Tensor:
    """For each row the first token, in the order of ids, up to which more than that share, in [0, 1), of the mass lies.

    A token of weight 0 is never chosen. The masses of blocks of tokens are summed first, and only the one block that
    the share falls into is summed token by token: a cumulative sum of 256000 numbers takes ten times as long as a sum.
    """
    blocks_RCX = blocks(weights_RV, fill=0.0)
    mass_RC = blocks_RCX.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    targets_R1 = shares_R1 * mass_RC[:, -1:]
    block_R1 = _first_over(mass_RC, targets_R1)
    before_R1 = pad(mass_RC, (1, 0)).gather(-1, block_R1)
    chosen_RX = blocks_RCX.take_along_dim(block_R1.unsqueeze(-1), dim=1).squeeze(1)
    token_R1 = _first_over(chosen_RX.cumsum(dim=-1, dtype=torch.float64), targets_R1 - before_R1)
    return (block_R1 * blocks_RCX.shape[-1] + token_R1).squeeze(-1)


def _first_over(mass_RX: torch.Tensor, targets_R1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative mass is over the target; by rounding, a target may be a hair over them all."""
    return torch.searchsorted(mass_RX, torch.minimum(targets_R1, mass_RX[:, -1:] * _JUST_UNDER_1), right=True)
