"""One sequence on its way through the engine: tokens, state, blocks. Knows no torch."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

from gemline.engine.blocks import BlockTable
from gemline.engine.events import FinishReason
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest


class Status(Enum):
    """Where a sequence stands. Only WAITING ones own no blocks."""

    WAITING = auto()  # to be admitted, first come first served
    RUNNING = auto()  # in the batch, prefilling or decoding
    HELD = auto()  # prefilled; its keys and values wait to be fetched
    IMPORTING = auto()  # has its blocks; its keys and values are on their way from another worker


@dataclass(slots=True, eq=False)
class Sequence:
    """`token_ids` are the prompt, then the answer; those before `num_computed` have keys and values in the cache."""

    seq_id: int
    arrival: int  # orders sequences by age, whatever became of them since
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    hold: bool
    global_table: BlockTable
    local_table: BlockTable
    status: Status = Status.WAITING
    num_computed: int = 0
    prompt_ids: frozenset[int] = frozenset()  # this and the next for penalties alone; empty when there are none
    answer_counts: Counter[int] = field(default_factory=Counter)

    @classmethod
    def begin(cls, request: EngineRequest, arrival: int, block_size: int) -> Self:
        """A waiting sequence without blocks."""
        prompt_ids: frozenset[int] = frozenset()
        answer_counts: Counter[int] = Counter()
        if request.params.penalized:
            prompt_ids = frozenset(request.token_ids[: request.num_prompt_tokens])
            answer_counts = Counter(request.token_ids[request.num_prompt_tokens :])
        return cls(
            seq_id=request.seq_id,
            arrival=arrival,
            token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            params=request.params,
            hold=request.hold,
            global_table=BlockTable(block_size),
            local_table=BlockTable(block_size),
            prompt_ids=prompt_ids,
            answer_counts=answer_counts,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and answer."""
        return len(self.token_ids)

    def append(self, token_id: int) -> FinishReason | None:
        """One more token of the answer; says whether, and why, it was the last."""
        self.token_ids.append(token_id)
        if self.params.penalized:
            self.answer_counts[token_id] += 1
        if token_id in self.params.stop_token_ids:
            return FinishReason.STOP
        if len(self.token_ids) - self.num_prompt_tokens >= self.params.max_tokens:
            return FinishReason.LENGTH
        return None
