"""Keys and values whose heads are divided among ranks, as they leave and come: rank 0 has the bytes of all of them.

So the wire knows no ranks, and a model divided one way feeds one that is divided another way, or whole. Each rank
copies its own heads out of and into its own cache; between the ranks they travel by collectives, over NVLink where
there is one. Heads that several ranks have are alike on each.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.kv_cache import KvCache
from gemline.engine.part import Part
from gemline.engine.ranks import Leader, Ranks


class Take(NamedTuple):
    """Rank 0 asks the others for their heads in those slots."""

    layer: int
    slots_T: torch.Tensor


class Put(NamedTuple):
    """Rank 0 has keys and values for those slots, of those KV heads of the whole model."""

    layer: int
    slots_T: torch.Tensor
    heads: range


class DividedCache:
    """All heads, as rank 0 reads and writes them, from one thread: as `KvCache`, whose methods say the rest."""

    def __init__(self, own: KvCache, part: Part, leader: Leader) -> None:
        self.config = part.config
        self.dtype = own.dtype
        self.scales = own.scales
        self.is_in_this_memory = False
        self._share = CacheShare(own, part, leader.ranks)
        self._parts = [Part(part.config, rank, part.num_ranks) for rank in range(part.num_ranks)]
        self._leader = leader

    def gather(self, layer: int, slots_T: torch.Tensor, heads: range, out_2TGK: torch.Tensor) -> None:
        """Raises RanksBroken too."""
        ask = Take(layer, slots_T)
        with self._leader.together(ask):
            for part, found_2TGK in zip(self._parts, self._share.give(ask), strict=True):
                both = _common(part.groups, heads)
                out_2TGK[:, :, _within(both, heads)].copy_(found_2TGK[:, :, _within(both, part.groups)])

    def scatter(self, layer: int, slots_T: torch.Tensor, heads: range, data_2TGK: NDArray[np.uint8]) -> None:
        """Raises RanksBroken too."""
        ask = Put(layer, slots_T, heads)
        shares = [self._share.room(ask) for _ in self._parts]
        for part, share_2TGK in zip(self._parts, shares, strict=True):
            both = _common(part.groups, heads)
            mine = np.ascontiguousarray(data_2TGK[:, :, _within(both, heads)])
            share_2TGK[:, :, _within(both, part.groups)] = torch.from_numpy(mine).to(share_2TGK.device)
        with self._leader.together(ask):
            self._share.receive(ask, shares)


class CacheShare:
    """One rank's heads, and its part in what rank 0 does with all of them. Every method raises RanksBroken."""

    def __init__(self, own: KvCache, part: Part, ranks: Ranks) -> None:
        self._own = own
        self._groups = part.groups
        self._ranks = ranks

    def give(self, ask: Take) -> list[torch.Tensor]:
        """All ranks' shares, in the cache's dtype, by rank; on rank 0 alone."""
        shape = (2, len(ask.slots_T), len(self._groups), self._own.config.head_dim)
        found_2TGK = torch.empty(shape, dtype=self._own.dtype, device=self._own.device)
        self._own.gather(ask.layer, ask.slots_T, range(len(self._groups)), found_2TGK)
        # As bytes: collectives know no float8.
        return [it.view(self._own.dtype) for it in self._ranks.collect(found_2TGK.view(torch.uint8))]

    def room(self, ask: Put) -> torch.Tensor:
        """Bytes of a share, 0 yet: all ranks' are of one size, and of the heads that came none is in some."""
        row_bytes = self._own.config.head_dim * self._own.dtype.itemsize
        shape = (2, len(ask.slots_T), len(self._groups), row_bytes)
        return torch.zeros(shape, dtype=torch.uint8, device=self._own.device)

    def receive(self, ask: Put, shares: list[torch.Tensor] | None = None) -> None:
        """Its share of what rank 0 has, which says for whom what is."""
        share_2TGK = self.room(ask)
        self._ranks.deal(shares, share_2TGK)
        at = _within(_common(self._groups, ask.heads), self._groups)
        self._own.scatter(ask.layer, ask.slots_T, range(at.start, at.stop), share_2TGK[:, :, at])


def _common(one: range, other: range) -> range:
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def _within(heads: range, of: range) -> slice:
    return slice(heads.start - of.start, heads.stop - of.start) if heads else slice(0, 0)
