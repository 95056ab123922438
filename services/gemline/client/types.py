"""What goes into the client and what comes out of it: plain data, free of gRPC and protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias, TypedDict


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model calls; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What is new of one call in a stream: id and name come once and first, arguments piece by piece."""

    index: int  # of the call in its answer
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `role` is "user", "assistant", "system", or "tool" for what a call gave."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant's turn
    tool_call_id: str = ""  # of role "tool": of the call that the content answers


Messages: TypeAlias = Sequence[Message | Mapping[str, str]]
"""A conversation; a mapping has the keys role and content, and may have tool_call_id."""


class Sampling(TypedDict, total=False):
    """How each next token is chosen; None or left out takes the default. Ranges: inference.proto, SamplingOptions."""

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    response_format: Mapping[str, Any] | None  # as OpenAI's; and {"type": "regex", "regex": ...}, the same for grammar
    tools: Sequence[Mapping[str, Any]] | None  # as OpenAI's; for chats
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    band: str | None  # how urgent: "priority", "default" or "batch"; by itself as the tenant is


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability; `data` are its exact bytes."""

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token at one generated position and the likeliest ones, the likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request: <bos>, turn markers and an end token included."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's, found in the prefix cache

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in a streamed answer; the last piece, and only it, has finish_reason and usage."""

    text: str
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    band: str | None = None  # in which it was served; of the last piece alone


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `finish_reason` is "stop", "length" or "tool_calls"."""

    request_id: str
    text: str
    finish_reason: str
    usage: Usage
    logprobs: tuple[PositionLogprobs, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    band: str | None = None  # in which it was served

    @property
    def message(self) -> Message:
        """The answer as the next turn of a conversation."""
        return Message("assistant", self.text, self.tool_calls)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is served; `context_length` is in tokens, prompt and answer together."""

    id: str
    context_length: int
    revision: str
    dtype: str = ""
    quantization: str = ""
    kv_dtype: str = ""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A conversation that the gateway keeps, as it was when the gateway said so. Times are UTC."""

    id: str
    model: str
    num_turns: int
    num_tokens: int  # of all turns, <bos> and turn markers included
    created_at: datetime
    updated_at: datetime  # when the last turn ended
    expires_at: datetime  # unless another turn comes before
    ttl_s: int  # from the last turn on
    owner_present: bool = False  # the worker that gave the last answer is still there
    kv_bytes: int = 0  # of its keys and values; 0 when that is not known
    metadata: Mapping[str, str] = field(default_factory=dict)
