"""From a batch to tokens among the ranks of a group: rank 0 tells the step, all compute it. Knows no sequence."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.kv_cache import KvCache
from gemline.engine.ranks import Leader
from gemline.engine.sampling import Sampled, SampleRow
from gemline.engine.shared_sampling import Vocabulary, choose_together


class Forward(Protocol):
    """The part of a model that is asked here."""

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows."""


class Step(NamedTuple):
    """What rank 0 tells the others before each step."""

    batch: Batch
    rows: tuple[SampleRow, ...]


class Member:
    """One rank's part of every step."""

    def __init__(self, model: Forward, cache: KvCache, vocabulary: Vocabulary) -> None:
        """`vocabulary` says whose logits the model gives."""
        self._model = model
        self._cache = cache
        self._vocabulary = vocabulary

    def compute(self, step: Step, score: Score | None = None) -> list[Sampled | None]:
        """A token for each row of `sample_rows` that is not scored; the same on all ranks. Raises RanksBroken."""

        def take(start: int, part_RV: torch.Tensor) -> None:
            logits_RV = self._vocabulary.whole(part_RV)
            if score is not None:
                score(start, logits_RV)

        part_BV = self._model.forward(step.batch, self._cache, take)
        return choose_together(part_BV, step.rows, self._vocabulary)


class Together:
    """Steps of all ranks, as rank 0 has them."""

    def __init__(self, own: Member, leader: Leader) -> None:
        self._own = own
        self._leader = leader

    def run(self, batch: Batch, rows: Sequence[SampleRow], score: Score | None = None) -> list[Sampled | None]:
        """What `Member.compute` gives. Raises RanksBroken."""
        step = Step(batch, tuple(row.told() for row in rows))
        with self._leader.together(step):
            return self._own.compute(step, score)

    def end(self) -> None:
        """Lets the others go."""
        self._leader.ranks.tell(None)
