"""What an engine step says of the sequences it moved. Plain data: no torch, no network."""

from dataclasses import dataclass, field
from enum import Enum

from gemline.engine.blocks import BlockCounts


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # one of its stop_token_ids was generated
    LENGTH = "length"  # max_tokens was reached


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logs of the probabilities at one position: the chosen token first, then the likeliest in order."""

    token_ids: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sequence got one token; `finish` is set when it was the last, the two numbers when it was the first."""

    seq_id: int
    token_id: int
    logprobs: Logprobs | None = None
    finish: FinishReason | None = None
    num_cached: int = 0  # of its tokens, found in a prefix cache and not computed
    num_resident: int = 0  # of its tokens, found in this engine's own
    prompt_logprobs: tuple[
        Logprobs, ...
    ] = ()  # of all the prompt's tokens but the first, if wanted; with the first token


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """One sequence cannot go on; the message is for the user. The others are not touched."""

    seq_id: int
    code: str  # a code of gemline.errors
    message: str
    param: str | None = None  # the request's field that is at fault


@dataclass(frozen=True, slots=True)
class PrefillEvent:
    """A held sequence's keys and values are in the cache for positions [0, num_computed)."""

    seq_id: int
    num_computed: int


@dataclass(frozen=True, slots=True)
class ResidencyChange:
    """Names of blocks behind which requests can go on now and could not before, and the other way round."""

    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """All that one engine step did."""

    tokens: tuple[TokenEvent, ...] = ()
    prefills: tuple[PrefillEvent, ...] = ()
    failures: tuple[FailureEvent, ...] = ()
    num_running: int = 0
    num_waiting: int = 0
    num_batch_tokens: int = 0
    num_preempted: int = 0
    residency: ResidencyChange = field(default_factory=ResidencyChange)
    # Blocks that no sequence has, those that the prefix cache keeps among them.
    free: BlockCounts = field(default=BlockCounts(0, 0), compare=False)
    duration_s: float = field(default=0.0, compare=False)
    ended_s: float = field(default=0.0, compare=False)  # by the monotonic clock
