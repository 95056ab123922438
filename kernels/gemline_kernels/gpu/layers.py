"""All layers of a step on a GPU: who attends to what is planned once for all layers with the same window."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch

from gemline_kernels.gpu.attention import Sequences, StepAttention
from gemline_kernels.layers import Attend, Context, PlainLayers


@dataclass(frozen=True, slots=True)
class TritonLayers(PlainLayers):
    """`PlainLayers`, to the bit. `cap` is the stack's, which needs no running maximum."""

    cap: float

    def attends(
        self, context: Context, windows: Set[int | None], keys_NSGK: torch.Tensor
    ) -> Mapping[int | None, Attend]:
        """Planned on the device."""
        stack = self.stack
        repeats = stack.num_heads // stack.num_groups
        sequences = Sequences.of(context.query_start, context.context_len, repeats, keys_NSGK.device)
        return {
            window: StepAttention.of(
                sequences, context.table_BP(window), keys_NSGK, window=window, scale=stack.scale, cap=self.cap
            )
            for window in windows
        }
