"""A whole decode step on buffers that stay where they are: a CUDA graph can hold it, and steps can be queued.

Each row is a sequence with one new token. A step computes it, writes its keys and values, chooses the next token and
moves on by one position, so that the next step finds all it needs on the device; blocks for the steps ahead have to be
in the tables before. A row of length 0 is padding: it writes nothing and is given token 0.

Of a model that is divided among ranks each has such a step over its part, and all run it at a time: what the weights
and the choice of a token need of the other ranks are collectives within it, in a graph as outside of one.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from gemline_kernels.gpu import backend
from gemline_kernels.gpu.attention import Sequences, StepAttention, num_decode_items, plan_decode
from gemline_kernels.gpu.layers import TritonLayers
from gemline_kernels.gpu.linear import begin
from gemline_kernels.gpu.sampling import Choices, sample
from gemline_kernels.gpu.support import MAX_CAP, is_max_free
from gemline_kernels.layers import Attend, Context, KeysValues, Weights
from gemline_kernels.vocabulary import Vocabulary


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
        self.answers_B = zeros(torch.int32)  # of the last step: tokens, -1 where logits were not finite


@dataclass(frozen=True, slots=True)
class _GraphLayers(TritonLayers):
    """Attention that is planned on the device, for rows that each have one new token."""

    sequences: Sequences
    num_items: int

    def attends(
        self, context: Context, windows: Set[int | None], keys_NSGK: torch.Tensor
    ) -> Mapping[int | None, Attend]:
        attends: dict[int | None, Attend] = {}
        for window in windows:
            plan = plan_decode(self.sequences.decode_len, self.num_items, keys_NSGK.shape[1], window)
            table_BP = context.table_BP(window)
            attends[window] = StepAttention(self.sequences, plan, table_BP, window, self.stack.scale, self.cap)
        return attends


@dataclass(frozen=True, slots=True)
class _Step:
    """The rows' tokens, as `Step` says."""

    positions_T: torch.Tensor
    global_slots_T: torch.Tensor
    local_slots_T: torch.Tensor
    global_table_BP: torch.Tensor
    local_table_BP: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    sample_rows: torch.Tensor


class DecodeStep:
    """The step of the first `num_rows` rows of the buffers. Raises ValueError for attention that needs a maximum."""

    def __init__(
        self,
        weights: Weights,
        pools: Sequence[KeysValues],
        buffers: Buffers,
        num_rows: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """`vocabulary`: weights and pools are a rank's part, and this is whose tokens its head has."""
        self._weights, self._pools, self._vocabulary = weights, pools, vocabulary
        self._token_ids_B, self._lengths_B = buffers.token_ids_B[:num_rows], buffers.lengths_B[:num_rows]
        self._answers_B = buffers.answers_B[:num_rows]
        self._choices = Choices(*(getattr(buffers.choices, name)[:num_rows] for name in Choices.__dataclass_fields__))
        self._global_table_BP = buffers.global_table_BP[:num_rows]
        self._local_table_BP = buffers.local_table_BP[:num_rows]
        device = self._lengths_B.device
        self._query_start = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(num_rows, device=device)
        no_items = torch.empty((0, 2), dtype=torch.int32, device=device)
        sequences = Sequences(self._query_start, self._lengths_B, self._lengths_B, no_items, num_rows)
        num_items = num_decode_items(num_rows, weights.stack.num_groups, device)
        cap = weights.stack.cap
        if cap is None or not is_max_free(cap):
            raise ValueError(f"a step in one piece needs scores under a cap of at most {MAX_CAP:g}, not {cap}")
        self._layers = _GraphLayers(backend, weights.stack, cap, sequences, num_items)

    def __call__(self, *, truncates: bool) -> None:
        """Computes the rows' tokens and chooses the next ones. `truncates`: some row has a top_k or a top_p.

        A row whose logits are not finite goes on with token 0: it is the host's to take it out.
        """
        weights = self._weights
        stack = weights.stack
        begun = begin(weights.embedding, self._token_ids_B, weights.embedding_scale, stack.first_norm_D, stack.eps)
        normed_BD = self._layers.run(begun, self._step(), self._pools)
        logits_BV = weights.head.logits(normed_BD, weights.final_cap)
        answers_B = sample(logits_BV, self._choices, truncates=truncates, vocabulary=self._vocabulary)
        is_row = self._lengths_B > 0
        self._answers_B.copy_(answers_B)
        self._token_ids_B.copy_(answers_B.clamp(min=0) * is_row)
        self._lengths_B.add_(is_row)
        self._choices.position.add_(is_row)

    def _step(self) -> _Step:
        """Once for all layers."""
        positions_T = (self._lengths_B - 1).clamp(min=0).long()
        return _Step(
            positions_T,
            self._slots(self._global_table_BP, positions_T),
            self._slots(self._local_table_BP, positions_T),
            self._global_table_BP,
            self._local_table_BP,
            self._query_start,
            self._lengths_B,
            self._rows,
        )

    def _slots(self, table_BP: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        """-1 for padding."""
        block_size = self._pools[0].keys.shape[1]
        blocks_T = table_BP.gather(1, positions_T[:, None] // block_size).squeeze(1).long()
        return torch.where(self._lengths_B > 0, blocks_T * block_size + positions_T % block_size, -1)


class Graph:
    """A step captured once and replayed at the cost of one launch. Needs a GPU; one graph for each number of rows."""

    def __init__(self, step: DecodeStep, *, truncates: bool, beside: "Graph | None" = None) -> None:
        """Captures; the buffers must hold rows that may be computed, padding for instance, and are changed.

        All ranks of a model capture the same graphs in the same order, and replay them so. What a step computes with
        takes the place of what the one `beside` did: the two are not to run at a time.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what cannot be captured: kernels are compiled and loaded, ranks connected
            for _ in range(2):
                step(truncates=truncates)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # A thread of NCCL's asks what became of earlier collectives, which must not break the capture.
        pool = None if beside is None else beside._graph.pool()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            step(truncates=truncates)

    def replay(self) -> None:
        """One step, queued."""
        self._graph.replay()
