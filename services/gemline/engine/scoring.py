"""Log-probabilities of prompts' own tokens, chunk by chunk as they are computed. Knows no scheduler."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import NamedTuple

import torch

from gemline.engine.batch import Batch
from gemline.engine.events import Logprobs
from gemline.engine.logprobs import logprobs
from gemline.engine.scheduler import Chunk
from gemline.engine.sequence import Sequence


class _Row(NamedTuple):
    """A row of the batch, and the prompt's token that its logits speak of."""

    row: int
    sequence: Sequence
    position: int  # of that token


class Scored(NamedTuple):
    """What is wanted of a row of logits."""

    token_id: int
    num_likeliest: int


class PromptScores:
    """Of the chunks of one step; `take` is told what a model's logits say."""

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

    @property
    def wanted(self) -> tuple[Scored, ...]:
        """Of each of these rows."""
        return tuple(
            Scored(row.sequence.token_ids[row.position], row.sequence.params.num_logprobs or 0) for row in self._rows
        )

    def take(self, start: int, found: SequenceOf[Logprobs]) -> None:
        """Notes what the rows from `start` on say of the tokens that follow."""
        for row, one in zip(self._rows[start:], found, strict=False):
            row.sequence.prompt_logprobs[row.position] = one


def score(logits_RV: torch.Tensor, wanted: SequenceOf[Scored]) -> list[Logprobs]:
    """What each row says, from whole rows."""
    found: dict[int, Logprobs] = {}
    for number in {one.num_likeliest for one in wanted}:
        rows = [row for row, one in enumerate(wanted) if one.num_likeliest == number]
        found.update(zip(rows, logprobs(logits_RV[rows], [wanted[row].token_id for row in rows], number), strict=True))
    return [found[row] for row in range(len(wanted))]
