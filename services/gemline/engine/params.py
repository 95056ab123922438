"""How a sequence's next tokens are chosen. Plain data: no torch, no network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gemline.engine.constraint import Constraint


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Every default filled in and every range checked: what the engine needs to choose tokens.

    The order in which they act on a row of (soft-capped) logits: logit_bias, penalties, the constraint, temperature,
    min_p, top_k, top_p, then one draw that depends on (seed, position) alone, so that any worker, batch or replay
    draws the same.
    """

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # unsigned, 64 bits
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer
    frequency_penalty: float = 0.0  # over the answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()  # the model's own end tokens included
    num_logprobs: int | None = None  # None: none; 0: the chosen token's; n: the n likeliest too
    constraint: Constraint | None = None  # what the answer must look like
    prompt_logprobs: bool = False  # num_logprobs also for each of the prompt's tokens but the first

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether the history of the sequence changes its logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
