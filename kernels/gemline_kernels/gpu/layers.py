"""All layers of a step on a GPU: attention is planned once for all layers with the same window."""

from dataclasses import dataclass

import torch

from gemline_kernels.gpu.attention import Sequences, StepAttention
from gemline_kernels.layers import Attend, Context, PlainLayers


@dataclass(frozen=True, slots=True)
class TritonLayers(PlainLayers):
    """`PlainLayers`, to the bit. `cap` is the stack's, which needs no running maximum."""

    cap: float

    def attend(self, context: Context, window: int | None, keys_NSGK: torch.Tensor) -> Attend:
        """Who attends to what, planned."""
        stack = self.stack
        device = keys_NSGK.device
        sequences = Sequences.of(context.query_start, context.context_len, stack.num_heads // stack.num_groups, device)
        return StepAttention.of(
            sequences, context.block_table_BP, keys_NSGK, window=window, scale=stack.scale, cap=self.cap
        )
