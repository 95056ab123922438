"""One sequence on its way through the engine: tokens, state, blocks. Knows no torch."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

from gemline.engine.blocks import BlockTable
from gemline.engine.constraint import Matcher
from gemline.engine.events import FinishReason, Logprobs
from gemline.engine.history import History
from gemline.engine.params import SamplingParams
from gemline.engine.prefix_tree import Trail
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
    num_given: int  # tokens that came with the request: the prompt, and what was generated elsewhere
    params: SamplingParams
    hold: bool
    tenant: bytes  # requests without a word of their tenant are of one
    global_table: BlockTable
    local_table: BlockTable
    status: Status = Status.WAITING
    num_computed: int = 0
    began: int | None = None  # how many sequences had arrived before the first step that it decoded in
    num_cached: int = 0  # of its tokens, found in a prefix cache and not computed
    num_resident: int = 0  # of its tokens, found in this engine's own when it was first admitted
    trail: Trail | None = None  # in the prefix cache; None when it shares nothing
    history: History = field(default_factory=History)  # for penalties alone; empty when there are none
    matcher: Matcher | None = None  # of a constrained answer
    prompt_logprobs: dict[int, Logprobs] = field(default_factory=dict)  # by position, if wanted, as they are computed

    @classmethod
    def begin(cls, request: EngineRequest, arrival: int, block_size: int, trail: Trail | None = None) -> Self:
        """A waiting sequence without blocks."""
        history = History()
        if request.params.penalized:
            start = request.num_prompt_tokens
            history = History(request.token_ids[:start], request.token_ids[start:])
        return cls(
            seq_id=request.seq_id,
            arrival=arrival,
            token_ids=list(request.token_ids),
            num_prompt_tokens=request.num_prompt_tokens,
            num_given=len(request.token_ids),
            params=request.params,
            hold=request.hold,
            tenant=request.cache_salt,
            global_table=BlockTable(block_size),
            local_table=BlockTable(block_size),
            trail=trail,
            history=history,
            matcher=request.matcher,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and answer."""
        return len(self.token_ids)

    @property
    def decodes(self) -> bool:
        """Whether one token is all it lacks to be given its next; otherwise it prefills."""
        return len(self.token_ids) - self.num_computed == 1

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of its prompt are to be told with its next token."""
        return self.params.prompt_logprobs and len(self.token_ids) == self.num_prompt_tokens

    @property
    def may_go_on(self) -> bool:
        """Whether, after its next token, another one may be wanted."""
        return len(self.token_ids) + 1 - self.num_prompt_tokens < self.params.max_tokens

    def append(self, token_id: int) -> FinishReason | None:
        """One more token of the answer; says whether, and why, it was the last."""
        self.token_ids.append(token_id)
        if self.params.penalized:
            self.history.append(token_id)
        if token_id in self.params.stop_token_ids:
            return FinishReason.STOP
        if len(self.token_ids) - self.num_prompt_tokens >= self.params.max_tokens:
            return FinishReason.LENGTH
        if self.matcher is not None:
            self.matcher.advance(token_id)
        return None
