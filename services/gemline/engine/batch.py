"""One engine step's input as tensors: ragged, all sequences one after the other. Knows no scheduler and no model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

Score = Callable[[int, torch.Tensor], None]
"""Takes the index of the first of some scored rows, and their logits_RV."""

_MOVED = (
    "token_ids_T",
    "positions_T",
    "global_slots_T",
    "local_slots_T",
    "global_table_BP",
    "local_table_BP",
    "sample_rows",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """T new tokens of B sequences. Sequence b owns the rows [query_start[b], query_start[b + 1]) of every *_T.

    A sequence's tokens are its last ones: context_len[b] counts all its positions up to and including the last new
    token, so its rows have the positions [context_len[b] - its number of rows, context_len[b]). A slot is
    block_id * block_size + offset in the pool of that layer kind; a released entry of a table is 0 and is never read.
    """

    token_ids_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64
    global_slots_T: torch.Tensor  # int64: where the global layers write each token
    local_slots_T: torch.Tensor  # int64: the same for the local layers
    global_table_BP: torch.Tensor  # int64: entry p holds the positions [p * block_size, (p + 1) * block_size)
    local_table_BP: torch.Tensor  # int64
    query_start: torch.Tensor  # int64, always on the CPU: B + 1 numbers, from 0 to T
    context_len: torch.Tensor  # int64, always on the CPU: B numbers
    sample_rows: torch.Tensor  # int64: the rows of T whose logits are wanted, in the order of the answer
    num_scored: int = 0  # of them, the last ones: wanted a few at a time, for they are many

    @classmethod
    def of_one(cls, token_ids_T: torch.Tensor, num_blocks: int, start: int = 0) -> Self:
        """A sequence in a cache of its own, whose position p has slot p of both pools: its tokens from `start` on, all
        of whose logits are wanted.
        """
        num_tokens = len(token_ids_T)
        positions_T, table_BP = torch.arange(start, start + num_tokens), torch.arange(num_blocks)[None]
        return cls(
            token_ids_T=token_ids_T,
            positions_T=positions_T,
            global_slots_T=positions_T,
            local_slots_T=positions_T,
            global_table_BP=table_BP,
            local_table_BP=table_BP,
            query_start=torch.tensor([0, num_tokens]),
            context_len=torch.tensor([start + num_tokens]),
            sample_rows=positions_T - start,
        )

    def to(self, device: torch.device) -> Self:
        """The same on the device, in one copy that nobody waits for."""
        parts = [getattr(self, name) for name in _MOVED]
        if parts[0].device.type == device.type:
            return self
        sizes = [part.numel() for part in parts]
        joined = torch.cat([part.flatten() for part in parts])
        if device.type == "cuda":  # behind what is queued there, without waiting for it
            joined = joined.pin_memory()
        moved = torch.split_with_sizes(joined.to(device, non_blocking=True), sizes)
        there: dict[str, Any] = {name: new.view(old.shape) for name, new, old in zip(_MOVED, moved, parts, strict=True)}
        return replace(self, **there)
