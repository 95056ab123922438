"""Runs a plan's chunks through the model: sequences to tensors, logits to tokens. Knows no queue and no pool."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.batch import Batch
from gemline.engine.blocks import BlockTable
from gemline.engine.kv_cache import KvCache
from gemline.engine.sampling import Sampled, SampleRow, sample
from gemline.engine.scheduler import Chunk
from gemline.engine.sequence import Sequence


class Model(Protocol):
    """What the runner needs of a model."""

    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows, float32, soft-capped."""
        ...


class Runner:
    """One model over one cache."""

    def __init__(self, model: Model, cache: KvCache) -> None:
        self._model = model
        self._cache = cache

    def run(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> dict[int, Sampled | None]:
        """Computes the chunks. A sequence whose last known token is among them gets a token, or None if that failed."""
        if not chunks:
            return {}
        complete = [c.seq_id for c in chunks if c.stop == sequences[c.seq_id].num_tokens]
        with torch.inference_mode():
            logits_BV = self._model.forward(collect(chunks, sequences, self._cache.block_size), self._cache)
            sampled = sample(logits_BV, [_row(sequences[seq_id]) for seq_id in complete])
        return dict(zip(complete, sampled, strict=True))


def collect(chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence], block_size: int) -> Batch:
    """The chunks one after the other, as tensors. Raises IndexError when a position's block is not held."""
    chosen = [sequences[chunk.seq_id] for chunk in chunks]
    token_ids: list[int] = []
    query_start, sample_rows = [0], []
    for chunk, sequence in zip(chunks, chosen, strict=True):
        token_ids += sequence.token_ids[chunk.start : chunk.stop]
        query_start.append(len(token_ids))
        if chunk.stop == len(sequence.token_ids):
            sample_rows.append(len(token_ids) - 1)
    context_len, first_rows = np.array([chunk.stop for chunk in chunks]), np.array(query_start)
    num_rows = first_rows[1:] - first_rows[:-1]
    positions = np.arange(len(token_ids)) + np.repeat(context_len - first_rows[1:], num_rows)
    pages = np.repeat(np.arange(len(chunks)), num_rows), positions // block_size
    global_table = _stack(chunks, [sequence.global_table for sequence in chosen], block_size)
    local_table = _stack(chunks, [sequence.local_table for sequence in chosen], block_size)
    offsets = positions % block_size
    return Batch(
        token_ids_T=torch.from_numpy(np.array(token_ids, dtype=np.int64)),
        positions_T=torch.from_numpy(positions),
        global_slots_T=torch.from_numpy(global_table[pages] * block_size + offsets),
        local_slots_T=torch.from_numpy(local_table[pages] * block_size + offsets),
        global_table_BP=torch.from_numpy(global_table),
        local_table_BP=torch.from_numpy(local_table),
        query_start=torch.from_numpy(first_rows),
        context_len=torch.from_numpy(context_len),
        sample_rows=torch.from_numpy(np.array(sample_rows, dtype=np.int64)),
    )


def _stack(chunks: SequenceOf[Chunk], tables: SequenceOf[BlockTable], block_size: int) -> NDArray[np.int64]:
    """The tables as rows, filled up with 0, each joined from its bytes: to assign to a row takes five times as long."""
    width = max(table.num_blocks for table in tables)
    parts: list[bytes] = []
    for chunk, table in zip(chunks, tables, strict=True):
        if not (table.holds(chunk.start // block_size) and table.holds((chunk.stop - 1) // block_size)):
            raise IndexError(f"sequence {chunk.seq_id}: positions [{chunk.start}, {chunk.stop}) are not all held")
        parts += (table.ids().tobytes(), bytes(8 * (width - table.num_blocks)))
    return np.frombuffer(bytearray().join(parts), dtype=np.int64).reshape(len(tables), width)


def _row(sequence: Sequence) -> SampleRow:
    return SampleRow(sequence.params, sequence.num_tokens, sequence.history)
