"""Runs a plan's chunks through the model: sequences to tensors, logits to tokens. Knows no queue and no pool."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.batch import Batch
from gemline.engine.blocks import BlockTable
from gemline.engine.choosing import sampled
from gemline.engine.compute import Compute
from gemline.engine.decode_rows import DecodeRows
from gemline.engine.sampling import Sampled, SampleRow
from gemline.engine.scheduler import Chunk
from gemline.engine.scoring import PromptScores
from gemline.engine.sequence import Sequence
from gemline_kernels.decoding import Rows


class Outcome(NamedTuple):
    """What came of a plan's chunks."""

    sampled: dict[int, Sampled | None]  # of each sequence that is due a token; None where it failed
    queued: frozenset[int]  # sequences whose chunk is on its way only, and is to be asked for again


class Runner:
    """One model over one cache, of blocks of `block_size`."""

    def __init__(self, compute: Compute, rows: Rows | None, block_size: int) -> None:
        """`rows`: where decode steps are queued, if they are."""
        self._compute = compute
        self._block_size = block_size
        self._rows = None if rows is None else DecodeRows(rows, block_size)

    @property
    def looks_ahead(self) -> bool:
        """Whether a sequence's block is of use before the step that it is needed in."""
        return self._rows is not None

    def run(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> Outcome:
        """Computes the chunks. A sequence whose last known token is among them gets a token, or None if that failed."""
        with torch.inference_mode():
            if self._rows is None:
                return Outcome(self._forward(chunks, sequences), frozenset())
            in_rows = [chunk for chunk in chunks if self._rows.takes(chunk, sequences[chunk.seq_id])]
            answers = self._rows.run(in_rows, sequences)
            found = {seq_id: sampled(token_id) for seq_id, token_id in answers.token_ids.items()}
            are_in_rows = set(in_rows)
            others = [chunk for chunk in chunks if chunk not in are_in_rows]
            return Outcome(found | self._forward(others, sequences), answers.queued)

    def end(self) -> None:
        """Lets other ranks go."""
        self._compute.end()

    def reset(self) -> None:
        """Lets go of whatever is queued, after an error."""
        if self._rows is not None:
            self._rows.reset()

    def _forward(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> dict[int, Sampled | None]:
        if not chunks:
            return {}
        complete = [c.seq_id for c in chunks if c.stop == sequences[c.seq_id].num_tokens]
        scores = PromptScores(chunks, sequences)
        batch = scores.added_to(collect(chunks, sequences, self._block_size))
        rows = [_row(sequences[seq_id]) for seq_id in complete]
        return dict(zip(complete, self._compute.run(batch, rows, scores), strict=True))


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
    return SampleRow(sequence.params, sequence.num_tokens, sequence.history, sequence.matcher)
