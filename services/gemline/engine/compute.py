"""From a batch to tokens among the ranks of a group: rank 0 tells the step, all compute it. Knows no sequence."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.kv_cache import KvCache
from gemline.engine.ranks import RanksBroken
from gemline.engine.sampling import Sampled, SampleRow
from gemline.engine.shared_sampling import Vocabulary, choose_together


class Forward(Protocol):
    """The part of a model that is asked here."""

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows."""


class Ask(NamedTuple):
    """What rank 0 tells the others before each step."""

    batch: Batch
    rows: tuple[SampleRow, ...]


class Together:
    """A model that is divided among ranks, as rank 0 drives it."""

    def __init__(self, model: Forward, cache: KvCache, vocabulary: Vocabulary) -> None:
        """`vocabulary` says whose logits the model gives."""
        self._model = model
        self._cache = cache
        self._vocabulary = vocabulary

    def lead(self, batch: Batch, rows: Sequence[SampleRow], score: Score | None = None) -> list[Sampled | None]:
        """One step; a token for each row of `sample_rows` that is not scored.

        Raises RanksBroken, also when the step fails here alone: the others are out of step for good.
        """
        ask = Ask(batch, tuple(row.told() for row in rows))
        self._vocabulary.ranks.tell(ask)
        try:
            return self._step(ask, score)
        except RanksBroken:
            raise
        except Exception as error:
            raise RanksBroken(f"rank 0 failed in a step: {error}") from error

    def follow(self) -> None:
        """Every other rank: what rank 0 does, until it says that it is over. Raises RanksBroken."""
        while (ask := self._vocabulary.ranks.hear()) is not None:
            self._step(ask, None)

    def end(self) -> None:
        """Rank 0 lets the others go."""
        self._vocabulary.ranks.tell(None)

    def _step(self, ask: Ask, score: Score | None) -> list[Sampled | None]:
        def take(start: int, part_RV: torch.Tensor) -> None:
            logits_RV = self._vocabulary.whole(part_RV)
            if score is not None:
                score(start, logits_RV)

        part_BV = self._model.forward(ask.batch, self._cache, take)
        return choose_together(part_BV, ask.rows, self._vocabulary)
