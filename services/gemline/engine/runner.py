"""Runs a plan's chunks through the model: sequences to tensors, logits to tokens. Knows no queue and no pool."""

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np
import torch

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
            logits_BV = self._model.forward(collect(chunks, sequences), self._cache)
            sampled = sample(logits_BV, [_row(sequences[seq_id]) for seq_id in complete])
        return dict(zip(complete, sampled, strict=True))


def collect(chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> Batch:
    """The chunks one after the other, as tensors."""
    token_ids, positions, global_slots, local_slots = array("q"), array("q"), array("q"), array("q")
    query_start, sample_rows = [0], array("q")
    for chunk in chunks:
        sequence = sequences[chunk.seq_id]
        token_ids.extend(sequence.token_ids[chunk.start : chunk.stop])
        positions.extend(range(chunk.start, chunk.stop))
        global_slots.extend(sequence.global_table.slots(chunk.start, chunk.stop))
        local_slots.extend(sequence.local_table.slots(chunk.start, chunk.stop))
        query_start.append(len(token_ids))
        if chunk.stop == sequence.num_tokens:
            sample_rows.append(len(token_ids) - 1)
    return Batch(
        token_ids_T=_tensor(token_ids),
        positions_T=_tensor(positions),
        global_slots_T=_tensor(global_slots),
        local_slots_T=_tensor(local_slots),
        global_table_BP=_stack([sequences[chunk.seq_id].global_table for chunk in chunks]),
        local_table_BP=_stack([sequences[chunk.seq_id].local_table for chunk in chunks]),
        query_start=query_start,
        context_len=[chunk.stop for chunk in chunks],
        sample_rows=_tensor(sample_rows),
    )


def _tensor(numbers: "array[int]") -> torch.Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _stack(tables: list[BlockTable]) -> torch.Tensor:
    """The tables as rows, filled up with 0. By way of numpy: a Python list of every entry takes a millisecond."""
    rows = np.zeros((len(tables), max(table.num_blocks for table in tables)), dtype=np.int64)
    for row, table in zip(rows, tables, strict=True):
        row[: table.num_blocks] = table.ids()
    return torch.from_numpy(rows)


def _row(sequence: Sequence) -> SampleRow:
    return SampleRow(sequence.params, sequence.num_tokens, sequence.prompt_ids, sequence.answer_counts)
