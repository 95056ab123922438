"""Rows on the GPU: sequences put into static buffers, and steps over them queued as CUDA graphs.

Among ranks each has its own, over its part of the model: all are made, told and launched alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gemline_kernels.decoding import Blocks, Choice, Row
from gemline_kernels.gpu.decode_step import Buffers, DecodeStep, Graph
from gemline_kernels.gpu.sampling import Choices, sample
from gemline_kernels.gpu.support import upload
from gemline_kernels.layers import KeysValues, Weights
from gemline_kernels.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class _Answer:
    """Tokens on their way to the host."""

    token_ids_B: torch.Tensor  # -1 where logits were not finite
    arrived: torch.cuda.Event | None  # None: they are there

    def __call__(self) -> list[int | None]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return _tokens(self.token_ids_B)


class TritonDecoder:
    """`Decoder`. On a GPU one graph for each number of rows out of 1, 2, 4, ..., captured here and now."""

    def __init__(
        self,
        weights: Weights,
        pools: Sequence[KeysValues],
        num_rows: int,
        num_blocks: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Raises ValueError as `DecodeStep` does. With a `vocabulary` each rank has one, all made at a time."""
        self.num_rows = num_rows
        self._vocabulary = vocabulary
        self._device = pools[0].keys.device
        self._buffers = Buffers(num_rows, num_blocks, self._device)
        self._sizes = [*(2**power for power in range((num_rows - 1).bit_length())), num_rows]
        steps = {size: DecodeStep(weights, pools, self._buffers, size, vocabulary) for size in self._sizes}
        self._captured: Graph | None = None  # the last one
        self._steps = {
            (size, truncates): self._ready(steps[size], truncates=truncates)
            for size in reversed(self._sizes)  # the largest first: what it allocates is enough for the others
            for truncates in (False, True)
        }

    def put(self, rows: Mapping[int, Row]) -> None:
        """As `Decoder` says."""
        if not rows:
            return
        buffers, at = self._buffers, upload(list(rows), torch.int64, self._device)
        choices = Choices.of([row.choice for row in rows.values()], self._device)
        buffers.token_ids_B[at] = upload([row.token_id for row in rows.values()], torch.int64, self._device)
        buffers.lengths_B[at] = choices.position.int()
        for field in Choices.__dataclass_fields__:
            getattr(buffers.choices, field)[at] = getattr(choices, field)

    def set_blocks(self, tables: Mapping[int, Blocks]) -> None:
        """As `Decoder` says."""
        if not tables:
            return
        width = self._buffers.global_table_BP.shape[1]
        at = upload(list(tables), torch.int64, self._device)
        both = [_filled(side, width) for table in tables.values() for side in table]
        of_global, of_local = upload(both, torch.int32, self._device).view(len(tables), 2, width).unbind(1)
        self._buffers.global_table_BP[at] = of_global
        self._buffers.local_table_BP[at] = of_local

    def clear(self, rows: Sequence[int]) -> None:
        """As `Decoder` says."""
        if rows:
            self._buffers.lengths_B[upload(list(rows), torch.int64, self._device)] = 0

    def launch(self, num_rows: int, *, truncates: bool) -> _Answer:
        """As `Decoder` says; as many rows as the next larger graph has are computed."""
        size = next(size for size in self._sizes if size >= num_rows)
        self._steps[size, truncates]()
        return self._answer(self._buffers.answers_B[:num_rows])

    def choose(self, logits_BV: torch.Tensor, choices: Sequence[Choice]) -> list[int | None]:
        """As `Decoder` says."""
        truncates = any(choice.top_k or choice.top_p < 1.0 for choice in choices)
        asked = Choices.of(choices, self._device)
        return _tokens(sample(logits_BV, asked, truncates=truncates, vocabulary=self._vocabulary))

    def _ready(self, step: DecodeStep, *, truncates: bool) -> Callable[[], None]:
        """The step as it is launched. All rows are padding still, so that a capture computes nothing that is kept."""
        if self._device.type == "cuda":
            self._captured = Graph(step, truncates=truncates, beside=self._captured)
            return self._captured.replay
        return partial(step, truncates=truncates)

    def _answer(self, token_ids_B: torch.Tensor) -> _Answer:
        if self._device.type != "cuda":
            return _Answer(token_ids_B.clone(), None)
        on_host = torch.empty(token_ids_B.shape, dtype=token_ids_B.dtype, pin_memory=True)
        on_host.copy_(token_ids_B, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Answer(on_host, arrived)


def _filled(block_ids: Sequence[int], width: int) -> list[int]:
    """A whole row of a table."""
    return [*block_ids, *([0] * (width - len(block_ids)))]


def _tokens(token_ids_B: torch.Tensor) -> list[int | None]:
    return [token_id if token_id >= 0 else None for token_id in token_ids_B.tolist()]
