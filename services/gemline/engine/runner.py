"""Runs a plan's chunks through the model: sequences to tensors, logits to tokens. Knows no queue and no pool."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gemline.engine.batch import Batch, Score
from gemline.engine.blocks import BlockTable
from gemline.engine.compute import Together
from gemline.engine.decode_rows import DecodeRows, choice, is_chosen_by_logits
from gemline.engine.kv_cache import KvCache
from gemline.engine.sampling import Sampled, SampleRow, sample
from gemline.engine.scheduler import Chunk
from gemline.engine.scoring import PromptScores
from gemline.engine.sequence import Sequence
from gemline_kernels.decoding import Decoder


class Model(Protocol):
    """What the runner needs of a model."""

    @property
    def device(self) -> torch.device:
        """Where its cache has to be."""

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows, float32, soft-capped.

        Those of the scored rows go to `score` instead, a few rows at a time and in order.
        """

    def decoder(self, cache: KvCache, num_rows: int) -> Decoder | None:
        """Rows for decode steps on the device, over that cache; None where a forward pass is as good."""


class Outcome(NamedTuple):
    """What came of a plan's chunks."""

    sampled: dict[int, Sampled | None]  # of each sequence that is due a token; None where it failed
    queued: frozenset[int]  # sequences whose chunk is on its way only, and is to be asked for again


class Runner:
    """One model over one cache."""

    def __init__(self, model: Model, cache: KvCache, max_running: int, together: Together | None = None) -> None:
        """`together`: the model is rank 0's part, and this is how all parts compute."""
        self._model = model
        self._cache = cache
        self._together = together
        self._decoder = None if together is not None else model.decoder(cache, max_running)
        self._rows = None if self._decoder is None else DecodeRows(self._decoder, cache.block_size)

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
            sampled = {seq_id: _sampled(token_id) for seq_id, token_id in answers.token_ids.items()}
            others = [chunk for chunk in chunks if chunk not in set(in_rows)]
            return Outcome(sampled | self._forward(others, sequences), answers.queued)

    def end(self) -> None:
        """Lets other ranks go."""
        if self._together is not None:
            self._together.end()

    def reset(self) -> None:
        """Lets go of whatever is queued, after an error."""
        if self._rows is not None:
            self._rows.reset()

    def _forward(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> dict[int, Sampled | None]:
        if not chunks:
            return {}
        complete = [c.seq_id for c in chunks if c.stop == sequences[c.seq_id].num_tokens]
        scores = PromptScores(chunks, sequences)
        batch = scores.added_to(collect(chunks, sequences, self._cache.block_size))
        chosen = [sequences[seq_id] for seq_id in complete]
        if self._together is not None:
            sampled = self._together.run(batch, [_row(sequence) for sequence in chosen], scores.take)
        else:
            sampled = self._sample(self._model.forward(batch, self._cache, scores.take), chosen)
        return dict(zip(complete, sampled, strict=True))

    def _sample(self, logits_BV: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[Sampled | None]:
        """On the device where it can choose all of the tokens, else here."""
        if self._decoder is not None and sequences and all(map(is_chosen_by_logits, sequences)):
            return list(map(_sampled, self._decoder.choose(logits_BV, [choice(sequence) for sequence in sequences])))
        return sample(logits_BV.cpu(), [_row(sequence) for sequence in sequences])


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


def _sampled(token_id: int | None) -> Sampled | None:
    return None if token_id is None else Sampled(token_id, None)


def _row(sequence: Sequence) -> SampleRow:
    return SampleRow(sequence.params, sequence.num_tokens, sequence.history, sequence.matcher)
