"""Maxima of long rows, by way of the maxima of their blocks. Knows no request.

A maximum alone runs at the speed of memory; one that must remember where it stood is ten times slower, and the k
largest are slower still. So the maxima of blocks come first, and only blocks that hold what is sought are searched.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

_BLOCK = 128  # divides the vocabularies that occur, so that no row is copied to be padded


class Largest(NamedTuple):
    """Numbers of each row and where they stand."""

    values: torch.Tensor
    indices: torch.Tensor


def blocks(x_RV: torch.Tensor, fill: float) -> torch.Tensor:
    """The rows as blocks_RCX of X numbers each, filled up with `fill`; a view where nothing had to be filled up."""
    num_missing = -x_RV.shape[-1] % _BLOCK
    filled_RV = pad(x_RV, (0, num_missing), value=fill) if num_missing else x_RV  # to pad by nothing is to copy
    return filled_RV.view(len(x_RV), -1, _BLOCK)


def first_largest(x_RV: torch.Tensor) -> Largest:
    """Of each row the largest number, values_R, and the first place it stands at, indices_R; NaN is the largest."""
    blocks_RCX = blocks(x_RV, fill=-torch.inf)
    block_R1 = blocks_RCX.amax(dim=-1).argmax(dim=-1, keepdim=True)
    best_R = blocks_RCX.take_along_dim(block_R1.unsqueeze(-1), dim=1).squeeze(1).max(dim=-1)
    return Largest(best_R.values, block_R1.squeeze(-1) * _BLOCK + best_R.indices)


def k_largest(x_RV: torch.Tensor, k: int) -> Largest:
    """The k largest numbers of each row, values_RK, the largest first; of equal ones any. `k` is at most the width."""
    blocks_RCX = blocks(x_RV, fill=-torch.inf)
    num_blocks = blocks_RCX.shape[1]
    if k == 0 or k >= num_blocks:
        return Largest(*x_RV.topk(k, dim=-1))
    block_RK = blocks_RCX.amax(dim=-1).topk(k, dim=-1, sorted=False).indices
    best_RK = blocks_RCX.take_along_dim(block_RK.unsqueeze(-1), dim=1).flatten(1).topk(k, dim=-1)
    indices_RK = block_RK.gather(-1, best_RK.indices // _BLOCK) * _BLOCK + best_RK.indices % _BLOCK
    return Largest(best_RK.values, indices_RK)
