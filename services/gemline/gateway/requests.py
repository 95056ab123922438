"""What a user asked for and what goes back, free of HTTP and gRPC: the words the two fronts and the core share."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from gemline.cluster.access import BANDS, Access, Band, TenantRecord
from gemline.cluster.limits import Scope
from gemline.engine.constraint import Constraint
from gemline.gateway.fair_queue import Asking
from gemline.gateway.routing import Life
from gemline.gateway.standing import Standing

MAX_MESSAGES = 4096  # of a conversation: more do not fit any context, and to read a million would hold up everybody


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose key was used, and what it gives."""

    tenant_id: str
    access: Access | None = None  # None: everything, without limits
    standing: Standing = field(default_factory=Standing, compare=False)  # of the one request that the key came with

    @classmethod
    def of(cls, access: Access) -> Self:
        """The one that the key found."""
        return cls(access.tenant.tenant_id, access)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """All that limits it."""
        return () if self.access is None else self.access.scopes

    def band(self, asked: Band | None) -> Band:
        """In which a request of it is served: it may be less urgent than the tenant is allowed to be, and not more."""
        own = self._record.band
        return BANDS[max(BANDS.index(own), BANDS.index(asked or own))]

    def asking(self, model_id: str, num_tokens: int, band: Band | None, timeout_s: float | None) -> Asking:
        """A request of it for its turn."""
        return Asking(self.tenant_id, model_id, num_tokens, self._record.weight, self.band(band), timeout_s)

    @property
    def _record(self) -> TenantRecord:
        return self.access.tenant if self.access is not None else TenantRecord(self.tenant_id)

    def allows(self, model_id: str) -> bool:
        """Whether it may use the model."""
        return self.access is None or self.access.allows(model_id)

    @property
    def cache_salt(self) -> bytes:
        """What the tenant's blocks in prefix caches are hashed with: the same on every gateway, no client names it."""
        return hashlib.sha256(b"gemline prefix cache of tenant " + self.tenant_id.encode()).digest()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: role is "user", "assistant" or "system"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What the user set, unchecked; None where the default holds. Ranges: inference.proto, SamplingOptions."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Constraint | None = None  # what the answer must look like
    echo: bool = False  # the answer begins with the prompt, and its log-probabilities if there are any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One of three: raw text, token ids, or the messages of a conversation."""

    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    after: Sequence[int] = ()  # the ids of a conversation up to its last <end_of_turn>, which the messages continue


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate. `request_id` is ours, never the client's."""

    request_id: str
    model: str
    prompt: Prompt
    sampling: SamplingOptions
    band: Band | None = None  # how urgent it is; None: as its tenant is by itself
    timeout_s: float | None = None  # of the caller's patience
    owner: Life | None = None  # the worker that has the keys and values of what came before, if any does
    session_id: str = ""  # whose turn it is, if it is one
    cache_key: str = ""  # requests of one begin alike: where no cache is known to hold that, one worker has them all
    reads_calls: bool = False  # what the answer says in the form of a call is one
    arrived_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability; `data` are its exact bytes."""

    token_id: int
    text: str
    data: bytes
    logprob: float | None  # None where nothing stands before it


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token at one generated position and the likeliest ones, the likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's, found in a prefix cache


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one call of a function: its id and name come once and first, its arguments piece by piece."""

    index: int  # of the call in its answer
    call_id: str
    name: str
    arguments: str  # a part of a JSON object


class Piece(NamedTuple):
    """What is new in an answer. The last piece, and only it, has finish_reason and usage.

    The reason is "stop", "length", or "tool_calls" where functions are to be called.
    """

    text: str
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    calls: tuple[CallDelta, ...] = ()
