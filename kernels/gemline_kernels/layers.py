"""Gemma 2's layers over a ragged batch and a paged cache, as operations of any backend, one after the other."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from gemline_kernels.backend import Backend, Embedding, Gated, Linear, Normed, RopeTable
from gemline_kernels.scales import UNSCALED, Scales


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's packed weights: projections that read the same input are one."""

    window: int | None  # positions that a query sees, its own included; None for all
    query_key_value: Linear
    attention_out: Linear
    gate_up: Gated
    down: Linear
    post_attention_norm_D: torch.Tensor
    pre_feedforward_norm_D: torch.Tensor
    post_feedforward_norm_D: torch.Tensor
    next_norm_D: torch.Tensor  # the next layer's input norm, or the model's final one

    @property
    def num_bytes(self) -> int:
        """Memory that the packed matrices take."""
        return sum(part.num_bytes for part in (self.query_key_value, self.attention_out, self.gate_up, self.down))


@dataclass(frozen=True, slots=True)
class Stack:
    """All layers' weights, and what they share."""

    layers: tuple[LayerWeights, ...]
    first_norm_D: torch.Tensor
    rope_table: RopeTable
    num_heads: int
    num_groups: int
    head_dim: int
    scale: float
    cap: float | None
    eps: float


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model."""

    embedding: Embedding
    embedding_scale: float
    stack: Stack
    head: Embedding
    final_cap: float | None

    @property
    def num_bytes(self) -> int:
        """Memory that the packed matrices take."""
        ends = self.embedding.num_bytes + (0 if self.head is self.embedding else self.head.num_bytes)
        return ends + sum(layer.num_bytes for layer in self.stack.layers)


class KeysValues(NamedTuple):
    """Keys and values of one layer, of the same shape: [N, S, G, K] for a pool, [T, G, K] for chosen slots."""

    keys: torch.Tensor
    values: torch.Tensor
    scales: Scales = UNSCALED  # of float8_e4m3fn; `reference.stored` says what they mean


class Step(Protocol):
    """T new tokens of B sequences. All tensors are int64 and contiguous."""

    @property
    def positions_T(self) -> torch.Tensor:
        """Of each new token in its sequence."""

    @property
    def global_slots_T(self) -> torch.Tensor:
        """Where layers without a window write each token."""

    @property
    def local_slots_T(self) -> torch.Tensor:
        """The same for layers with one."""

    @property
    def global_table_BP(self) -> torch.Tensor:
        """Blocks of each sequence, for layers without a window."""

    @property
    def local_table_BP(self) -> torch.Tensor:
        """The same for layers with one."""

    @property
    def query_start(self) -> torch.Tensor:
        """B + 1 numbers, on the CPU: sequence b owns the rows [query_start[b], query_start[b + 1])."""

    @property
    def context_len(self) -> torch.Tensor:
        """B numbers, on the CPU: positions of each sequence, the new ones included."""

    @property
    def sample_rows(self) -> torch.Tensor:
        """Rows of T whose result is wanted, in the order of the answer."""


class Layers(Protocol):
    """A stack ready to run."""

    def __call__(self, residual_TD: torch.Tensor, step: Step, pools: Sequence[KeysValues], /) -> torch.Tensor:
        """normed_BD: the rows of `step.sample_rows` after all layers and the final norm.

        Writes the keys and values of all rows into `pools`, one pair a layer.
        """


class Attend(Protocol):
    """Attention of one step in the layers that have one window."""

    def __call__(
        self, query_THK: torch.Tensor, keys_NSGK: torch.Tensor, values_NSGK: torch.Tensor, scales: Scales, /
    ) -> torch.Tensor:
        """out_THK over one layer's pool."""


class Context(NamedTuple):
    """What attention has to know of a batch; see `Step`."""

    global_table_BP: torch.Tensor
    local_table_BP: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor

    def table_BP(self, window: int | None) -> torch.Tensor:
        """Of the layers with that window."""
        return self.global_table_BP if window is None else self.local_table_BP


@dataclass(frozen=True, slots=True)
class PlainLayers:
    """The layers as calls of a backend's operations: the specification of any faster way to run them."""

    ops: Backend
    stack: Stack

    def __call__(self, residual_TD: torch.Tensor, step: Step, pools: Sequence[KeysValues], /) -> torch.Tensor:
        """As `Layers` says."""
        stack = self.stack
        return self.run(Normed(residual_TD, self.ops.rms_norm(residual_TD, stack.first_norm_D, stack.eps)), step, pools)

    def run(self, begun: Normed, step: Step, pools: Sequence[KeysValues]) -> torch.Tensor:
        """The same from the embedding and its first norm on."""
        ops, stack, (residual_TD, normed_TD) = self.ops, self.stack, begun
        narrow = is_worth_narrowing(step)
        last, context = stack.layers[-1], _context(step)
        attends = self.attends(context, {layer.window for layer in stack.layers}, pools[0].keys)
        narrowed = self.attends(_narrowed(context, step.sample_rows), {last.window}, pools[0].keys) if narrow else {}
        for layer, pool in zip(stack.layers, pools, strict=True):
            query_THK = self._write(layer, layer.query_key_value(normed_TD), step, pool)
            attend = attends[layer.window]
            if narrow and layer is last:
                query_THK, residual_TD = query_THK[step.sample_rows], residual_TD[step.sample_rows]
                attend = narrowed[layer.window]
            residual_TD, normed_TD = ops.add_norm(
                layer.attention_out(attend(query_THK, *pool).flatten(1)),
                residual_TD,
                layer.post_attention_norm_D,
                layer.pre_feedforward_norm_D,
                stack.eps,
            )
            residual_TD, normed_TD = ops.add_norm(
                layer.down(layer.gate_up(normed_TD)),
                residual_TD,
                layer.post_feedforward_norm_D,
                layer.next_norm_D,
                stack.eps,
            )
        return normed_TD if narrow else normed_TD[step.sample_rows]

    def attends(
        self, context: Context, windows: Set[int | None], keys_NSGK: torch.Tensor
    ) -> Mapping[int | None, Attend]:
        """Attention in the layers with each window, prepared once for all of them; `keys_NSGK` is any layer's pool."""
        stack, (_, _, query_start, context_len) = self.stack, context

        def attend(window: int | None) -> Attend:
            table_BP = context.table_BP(window)
            return lambda query_THK, keys_NSGK, values_NSGK, scales: self.ops.paged_attention(
                query_THK,
                keys_NSGK,
                values_NSGK,
                table_BP,
                query_start,
                context_len,
                window=window,
                scale=stack.scale,
                cap=stack.cap,
                scales=scales,
            )

        return {window: attend(window) for window in windows}

    def _write(self, layer: LayerWeights, projected_TM: torch.Tensor, step: Step, pool: KeysValues) -> torch.Tensor:
        """The queries; keys and values go into the pool."""
        stack = self.stack
        return self.ops.rope_write(
            projected_TM.view(len(projected_TM), stack.num_heads + 2 * stack.num_groups, stack.head_dim),
            stack.rope_table,
            step.positions_T,
            pool.keys,
            pool.values,
            step.global_slots_T if layer.window is None else step.local_slots_T,
            stack.num_heads,
            pool.scales,
        )


def _context(step: Step) -> Context:
    return Context(step.global_table_BP, step.local_table_BP, step.query_start, step.context_len)


def is_worth_narrowing(step: Step) -> bool:
    """Whether the last layer may drop the rows that are not sampled, once their keys and values are written.

    Nothing reads what it would make of them: of a prompt's rows all but one. With more sampled rows than sequences
    (all logits of a prompt) each would be attended to by itself, which costs more than it saves.
    """
    return len(step.sample_rows) <= len(step.context_len) and len(step.sample_rows) < len(step.positions_T)


def _narrowed(context: Context, sample_rows: torch.Tensor) -> Context:
    """The sampled rows alone, each as a sequence with one new token."""
    global_table_BP, local_table_BP, query_start, context_len = context
    rows = sample_rows.cpu()
    sequences = torch.searchsorted(query_start, rows, right=True) - 1
    at = sequences.to(global_table_BP.device)
    return Context(
        global_table_BP[at],
        local_table_BP[at],
        torch.arange(len(rows) + 1),
        context_len[sequences] - query_start[sequences + 1] + rows + 1,
    )
