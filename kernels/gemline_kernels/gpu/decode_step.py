"""A whole decode step on buffers that stay where they are: a CUDA graph can hold it, and steps can be queued.

Each row is a sequence with one new token. A step computes it, writes its keys and values, chooses the next token and
moves on by one position, so that the next step finds all it needs on the device; blocks for the steps ahead have to be
in the tables before. A row of length 0 is padding: it writes nothing and is given token 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemline_kernels.backend import Embedding
from gemline_kernels.gpu import backend
from gemline_kernels.gpu.attention import Sequences, StepAttention, num_decode_items, plan_decode
from gemline_kernels.gpu.layers import TritonLayers
from gemline_kernels.gpu.sampling import Choices, sample
from gemline_kernels.gpu.support import MAX_CAP, is_max_free
from gemline_kernels.layers import Attend, Context, KeysValues, Stack


@dataclass(frozen=True, slots=True)
class Weights:
    """A model, packed by the backend `gemline_kernels.gpu.backend`."""

    embedding: Embedding
    embedding_scale: float
    stack: Stack
    head: Embedding
    final_cap: float | None


class Buffers:
    """B rows, at most; P blocks of a sequence. All on the device; what a step of fewer rows uses is their beginning."""

    def __init__(self, num_rows: int, num_blocks: int, device: torch.device) -> None:
        def zeros(dtype: torch.dtype, *sizes: int) -> torch.Tensor:
            return torch.zeros((num_rows, *sizes), dtype=dtype, device=device)

        self.token_ids_B = zeros(torch.int64)
        self.lengths_B = zeros(torch.int32)  # positions of each sequence, the new one included
        self.global_table_BP = zeros(torch.int32, num_blocks)
        self.local_table_BP = zeros(torch.int32, num_blocks)
        self.choices = Choices(
            temperature=zeros(torch.float32),
            top_k=zeros(torch.int32),
            top_p=zeros(torch.float32) + 1.0,
            min_p=zeros(torch.float32),
            seed=zeros(torch.int64),
            position=zeros(torch.int64),  # of the token to be chosen: the length
        )
        self.failed_B = zeros(torch.bool)  # whether a row's logits were not finite in any step


@dataclass(frozen=True, slots=True)
class _GraphLayers(TritonLayers):
    """Attention that is planned on the device, for rows that each have one new token."""

    sequences: Sequences
    num_items: int

    def attend(self, context: Context, window: int | None, keys_NSGK: torch.Tensor) -> Attend:
        plan = plan_decode(self.sequences.decode_len, self.num_items, keys_NSGK.shape[1], window)
        return StepAttention(self.sequences, plan, context.block_table_BP, window, self.stack.scale, self.cap)


class DecodeStep:
    """The step of the first `num_rows` rows of the buffers: a `Step` of their tokens, and a call that computes it.

    Raises ValueError for a stack whose attention needs a running maximum.
    """

    def __init__(self, weights: Weights, pools: Sequence[KeysValues], buffers: Buffers, num_rows: int) -> None:
        self._weights, self._pools = weights, pools
        self._token_ids_B, self._lengths_B = buffers.token_ids_B[:num_rows], buffers.lengths_B[:num_rows]
        self._failed_B = buffers.failed_B[:num_rows]
        self._choices = Choices(*(getattr(buffers.choices, name)[:num_rows] for name in Choices.__dataclass_fields__))
        self.global_table_BP = buffers.global_table_BP[:num_rows]
        self.local_table_BP = buffers.local_table_BP[:num_rows]
        device = self._lengths_B.device
        self.query_start = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self.context_len = self._lengths_B
        self.sample_rows = torch.arange(num_rows, device=device)
        no_items = torch.empty((0, 2), dtype=torch.int32, device=device)
        sequences = Sequences(self.query_start, self._lengths_B, self._lengths_B, no_items, num_rows)
        num_items = num_decode_items(num_rows, weights.stack.num_groups, device)
        cap = weights.stack.cap
        if cap is None or not is_max_free(cap):
            raise ValueError(f"a step in one piece needs scores under a cap of at most {MAX_CAP:g}, not {cap}")
        self._layers = _GraphLayers(backend, weights.stack, cap, sequences, num_items)

    @property
    def positions_T(self) -> torch.Tensor:
        """Of the new tokens."""
        return (self._lengths_B - 1).clamp(min=0).long()

    @property
    def global_slots_T(self) -> torch.Tensor:
        """-1 for padding."""
        return self._slots(self.global_table_BP)

    @property
    def local_slots_T(self) -> torch.Tensor:
        """-1 for padding."""
        return self._slots(self.local_table_BP)

    def __call__(self, *, truncates: bool) -> None:
        """Computes the rows' tokens and chooses the next ones. `truncates`: some row has a top_k or a top_p."""
        weights = self._weights
        residual_TD = weights.embedding.rows(self._token_ids_B, weights.embedding_scale)
        normed_BD = self._layers(residual_TD, self, self._pools)
        token_ids_B = sample(weights.head.logits(normed_BD, weights.final_cap), self._choices, truncates=truncates)
        is_row = self._lengths_B > 0
        self._failed_B.logical_or_((token_ids_B < 0) & is_row)
        self._token_ids_B.copy_(token_ids_B.clamp(min=0) * is_row)
        self._lengths_B.add_(is_row)
        self._choices.position.add_(is_row)

    def _slots(self, table_BP: torch.Tensor) -> torch.Tensor:
        block_size = self._pools[0].keys.shape[1]
        positions_T = self.positions_T
        blocks_T = table_BP.gather(1, positions_T[:, None] // block_size).squeeze(1).long()
        return torch.where(self._lengths_B > 0, blocks_T * block_size + positions_T % block_size, -1)


class Graph:
    """A step captured once and replayed at the cost of one launch. Needs a GPU; one graph for each number of rows."""

    def __init__(self, step: DecodeStep, *, truncates: bool) -> None:
        """Captures; the buffers must hold rows that may be computed, padding for instance, and are changed."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles and loads every kernel first: that cannot be captured
            for _ in range(2):
                step(truncates=truncates)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step(truncates=truncates)

    def replay(self) -> None:
        """One step, queued."""
        self._graph.replay()
