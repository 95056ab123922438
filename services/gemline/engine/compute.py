"""From a batch to tokens: alone, or among the ranks of a group, where rank 0 tells the step. Knows no sequence."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.choosing import choose_there
from gemline.engine.kv_cache import KvCache
from gemline.engine.ranks import Leader
from gemline.engine.sampling import Sampled, SampleRow, sample
from gemline.engine.scoring import PromptScores, Scored, score
from gemline.engine.shared_sampling import choose_together, logprobs_together
from gemline_kernels.decoding import Decoder
from gemline_kernels.vocabulary import Vocabulary


class Forward(Protocol):
    """The part of a model that is asked here."""

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows, float32, soft-capped.

        Those of the scored rows go to `score` instead, a few rows at a time and in order.
        """


class Compute(Protocol):
    """Steps of a whole model."""

    def run(self, batch: Batch, rows: Sequence[SampleRow], scores: PromptScores) -> list[Sampled | None]:
        """A token for each row of `sample_rows` that is not scored; None where logits are not finite."""

    def end(self) -> None:
        """The last call: whoever computes along is let go."""


class Alone:
    """One process has all of the model."""

    def __init__(self, model: Forward, cache: KvCache, decoder: Decoder | None) -> None:
        self._model = model
        self._cache = cache
        self._decoder = decoder

    def run(self, batch: Batch, rows: Sequence[SampleRow], scores: PromptScores) -> list[Sampled | None]:
        """On the device where it can choose all of the tokens, else here."""
        wanted = scores.wanted

        def take(start: int, logits_RV: torch.Tensor) -> None:
            scores.take(start, score(logits_RV, wanted[start : start + len(logits_RV)]))

        logits_BV = self._model.forward(batch, self._cache, take)
        return choose_there(self._decoder, logits_BV, rows) or sample(logits_BV.cpu(), rows)

    def end(self) -> None:
        """Nobody else computes."""


class Step(NamedTuple):
    """What rank 0 tells the others before each step."""

    batch: Batch
    rows: tuple[SampleRow, ...]
    scored: tuple[Scored, ...]


class Member:
    """One rank's part of every step."""

    def __init__(self, model: Forward, cache: KvCache, decoder: Decoder | None, vocabulary: Vocabulary) -> None:
        """`vocabulary` says whose logits the model gives. A decoder is each rank's, or none's."""
        self._model = model
        self._cache = cache
        self._decoder = decoder
        self._vocabulary = vocabulary

    def compute(self, step: Step, scores: PromptScores | None = None) -> list[Sampled | None]:
        """A token for each row of `sample_rows` that is not scored; the same on all ranks. Raises RanksBroken."""

        def take(start: int, part_RV: torch.Tensor) -> None:
            wanted = step.scored[start : start + len(part_RV)]
            token_ids, numbers = [one.token_id for one in wanted], [one.num_likeliest for one in wanted]
            found = logprobs_together(part_RV, token_ids, numbers, self._vocabulary)
            if scores is not None:
                scores.take(start, [found[row] for row in range(len(wanted))])

        part_BV = self._model.forward(step.batch, self._cache, take)
        return choose_there(self._decoder, part_BV, step.rows) or choose_together(part_BV, step.rows, self._vocabulary)


class Together:
    """Steps of all ranks, as rank 0 has them."""

    def __init__(self, own: Member, leader: Leader) -> None:
        self._own = own
        self._leader = leader

    def run(self, batch: Batch, rows: Sequence[SampleRow], scores: PromptScores) -> list[Sampled | None]:
        """What `Member.compute` gives. Raises RanksBroken."""
        step = Step(batch, tuple(row.told() for row in rows), scores.wanted)
        with self._leader.together(step):
            return self._own.compute(step, scores)

    def end(self) -> None:
        """Lets the others go."""
        self._leader.ranks.tell(None)
