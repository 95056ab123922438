"""Log-probabilities of prompts' own tokens, chunk by chunk as they are computed. Knows no scheduler."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import NamedTuple

import torch

from gemline.engine.batch import Batch
from gemline.engine.logprobs import logprobs
from gemline.engine.scheduler import Chunk
from gemline.engine.sequence import Sequence


class _Row(NamedTuple):
    """A row of the batch, and the prompt's token that its logits speak of."""

    row: int
    sequence: Sequence
    position: int  # of that token


class PromptScores:
    """Of the chunks of one step; `take` is what a model gives the rows' logits to."""

    def __init__(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> None:
        self._rows: list[_Row] = []
        first = 0
        for chunk in chunks:
            sequence = sequences[chunk.seq_id]
            if sequence.scores_prompt:
                stop = min(chunk.stop, sequence.num_prompt_tokens - 1)
                rows = range(chunk.start, stop)
                self._rows += [_Row(first + at - chunk.start, sequence, at + 1) for at in rows]
            first += chunk.stop - chunk.start

    def added_to(self, batch: Batch) -> Batch:
        """The batch with these rows behind those that are sampled; as it is when there are none."""
        if not self._rows:
            return batch
        rows_R = torch.tensor([row.row for row in self._rows], dtype=torch.int64)
        return replace(batch, sample_rows=torch.cat((batch.sample_rows, rows_R)), num_scored=len(self._rows))

    def take(self, start: int, logits_RV: torch.Tensor) -> None:
        """Notes what the logits of the rows from `start` on say of the tokens that follow."""
        rows = self._rows[start : start + len(logits_RV)]
        for number in {row.sequence.params.num_logprobs or 0 for row in rows}:
            indices = [index for index, row in enumerate(rows) if (row.sequence.params.num_logprobs or 0) == number]
            token_ids = [rows[index].sequence.token_ids[rows[index].position] for index in indices]
            found = logprobs(logits_RV[torch.tensor(indices)], token_ids, number)
            for index, one in zip(indices, found, strict=True):
                rows[index].sequence.prompt_logprobs[rows[index].position] = one
