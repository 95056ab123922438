"""Which tokens min_p, top_k and top_p leave of a distribution. Knows no request.

Each leaves a prefix of the tokens, the likeliest first: all that has to be found is the least weight that stays.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_Floats = npt.NDArray[np.float32]

_STRIPES = 32  # a row is cut into columns of so many tokens; those of the largest maxima hold the likeliest tokens
_SHORT = 4096  # tokens; so few are sorted at once
_FIRST_LOOK = 4  # one in so many columns, if top_k does not say: sorted first, and most often enough


class Edge(NamedTuple):
    """The least weight that stays, and of how many tokens with just that weight, the first ones; None: of all."""

    weight: float
    num_equal: int | None = None


def truncate_(weights_V: torch.Tensor, top_k: int, top_p: float) -> None:
    """Makes 0 of the weights of all but the tokens that top_k (0: all) and then top_p (1: all) leave, in place.

    top_p leaves the fewest likeliest tokens whose share of what top_k left is at least top_p. Of equal tokens at the
    edge those of lower id stay.
    """
    edge = find_edge(weights_V.cpu().numpy(), top_k, top_p)
    if edge is not None:
        cut_(weights_V, edge)


def cut_(weights_V: torch.Tensor, edge: Edge) -> None:
    """Makes 0 of the weights beyond the edge, in place."""
    if edge.weight == 0:
        return
    if edge.num_equal is not None:
        equal = (weights_V == edge.weight).nonzero().squeeze(-1)
        weights_V[equal[edge.num_equal :]] = 0.0
    keep_from_(weights_V, edge.weight)


def keep_from_(weights_V: torch.Tensor, least: float) -> None:
    """Makes 0 of the weights below `least`, in place."""
    below = np.nextafter(np.float32(least), np.float32(-1))
    torch.nn.functional.threshold(weights_V, float(below), 0.0, inplace=True)


def edge_among(likeliest: _Floats, over: float, top_k: int, top_p: float, total: float) -> Edge | None:
    """The edge, where of a row only the likeliest weights and the sum of all are known; None: it may lie beyond them.

    `likeliest` begins with the largest; all weights over `over` are among them. top_k is less than the row has tokens.
    """
    if top_k > len(likeliest):
        return None
    num_kept = _num_kept(likeliest[: top_k or None], top_p, None if top_k else total)
    if num_kept > len(likeliest):
        return None
    found = _cut(likeliest, num_kept)
    return found if found.weight > over else None


def find_edge(weights_V: _Floats, top_k: int, top_p: float) -> Edge | None:
    """None where every token stays."""
    vocab_size = len(weights_V)
    limit = min(top_k, vocab_size) or vocab_size
    if top_p >= 1.0 and limit == vocab_size:
        return None
    total = None if limit < vocab_size else float(weights_V.sum())
    likeliest = _likeliest(weights_V, limit if limit < vocab_size else vocab_size // (_STRIPES * _FIRST_LOOK))
    num_kept = _num_kept(likeliest[:limit], top_p, total)
    if num_kept > len(likeliest) < vocab_size:
        likeliest = _descending(weights_V)
        num_kept = _num_kept(likeliest, top_p, total)
    return _cut(likeliest, min(num_kept, limit))


def _num_kept(likeliest: _Floats, top_p: float, total: float | None) -> int:
    """How many are the least that hold the share top_p of the total, None: of their own; one too many if all do not."""
    if top_p >= 1.0:
        return len(likeliest)
    mass = likeliest.cumsum(dtype=np.float64)
    return int(np.searchsorted(mass, top_p * (mass[-1] if total is None else total))) + 1


def _cut(likeliest: _Floats, num_kept: int) -> Edge:
    """The edge after the first `num_kept`; whoever equals the last of them is among the likeliest."""
    weight = likeliest[num_kept - 1]
    start, stop = (int(np.searchsorted(-likeliest, -weight, side=side)) for side in ("left", "right"))
    return Edge(float(weight), None if stop == num_kept else num_kept - start)


def _likeliest(weights_V: _Floats, num_wanted: int) -> _Floats:
    """At least so many of the largest weights, and all that equal the least of these, the largest first."""
    num_columns = len(weights_V) // _STRIPES
    if len(weights_V) <= _SHORT or num_wanted >= num_columns:
        return _descending(weights_V)
    columns_XC = weights_V[: num_columns * _STRIPES].reshape(_STRIPES, num_columns)
    maximum_C = columns_XC.max(axis=0)
    least = np.partition(maximum_C, -num_wanted)[-num_wanted]
    candidates = np.concatenate((columns_XC[:, maximum_C >= least].ravel(), weights_V[columns_XC.size :]))
    return _descending(candidates[candidates >= least])


def _descending(weights: _Floats) -> _Floats:
    return np.sort(weights)[::-1]
