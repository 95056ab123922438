"""The answers of OpenAI's clients as the document shows them: every field there is, and no other.

They are written elsewhere, as bytes and dicts; tests hold those to these.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]
ServiceTier = Literal["priority", "default", "flex"]  # in which a request was served


class Answer(BaseModel):
    """Any answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorFields(Answer):
    """What went wrong; `param` names the field at fault, where one is."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """The body of every answer that is an error."""

    error: ErrorFields


class PromptDetails(Answer):
    """Of the prompt's tokens: those found in a prefix cache."""

    cached_tokens: int


class UsageAnswer(Answer):
    """Tokens of a request; of several choices together, each prompt counted once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatToken(Answer):
    """A token, its natural-log probability, its exact bytes."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatPosition(ChatToken):
    """The token at one position, and the likeliest there."""

    top_logprobs: list[ChatToken]


class ChatLogprobs(Answer):
    """A chat's log-probabilities."""

    content: list[ChatPosition]
    refusal: None


class CompletionLogprobs(Answer):
    """A completion's, as parallel lists; offsets are in characters from the start of the answer."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CalledAnswer(Answer):
    """A function's name and arguments: a JSON object as text."""

    name: str
    arguments: str


class CallAnswer(Answer):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: CalledAnswer


class CalledDelta(Answer):
    """What is new of a call; its name comes once."""

    name: str = ""
    arguments: str


class CallDeltaAnswer(Answer):
    """A part of a call in a stream; `id` and `type` come once, with the first."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledDelta


class ChatAnswerMessage(Answer):
    """The model's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[CallAnswer] = []


class ChatChoice(Answer):
    """One of `n` answers."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Answer):
    """A whole chat answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer
    service_tier: ServiceTier


class ChatDelta(Answer):
    """What is new of a turn."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[CallDeltaAnswer] = []


class ChatChunkChoice(Answer):
    """What is new of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class _Chunk(Answer):
    """What every event of a stream says."""

    id: str
    created: int
    model: str
    usage: UsageAnswer | None = None
    service_tier: ServiceTier | None = None


class ChatChunk(_Chunk):
    """An event of a streamed chat. `usage` is there with include_usage, null until the last;
    `service_tier` where a choice ends."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionChunkChoice(Answer):
    """What is new of one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(_Chunk):
    """An event of a streamed completion. `usage` is there with include_usage, null until the last;
    `service_tier` where a choice ends."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class CompletionChoice(CompletionChunkChoice):
    """One of the answers: of each prompt `n`."""

    finish_reason: FinishReason


class CompletionAnswer(Answer):
    """A whole completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer
    service_tier: ServiceTier


class ModelAnswer(Answer):
    """A model; `max_model_len` tokens are prompt and answer together at most."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    revision: str
    dtype: str
    quantization: str
    kv_dtype: str


class ModelList(Answer):
    """The models of a key."""

    object: Literal["list"]
    data: list[ModelAnswer]


class TokenizeAnswer(Answer):
    """Token ids, how many, and how many fit."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeAnswer(Answer):
    """The text of token ids."""

    text: str


class SessionAnswer(Answer):
    """A session, without its words. Times are Unix times in seconds."""

    id: str
    object: Literal["session"]
    model: str
    num_turns: int
    num_tokens: int
    created_at: int
    updated_at: int
    expires_at: int
    ttl_s: int
    owner_present: bool
    kv_bytes: int
    metadata: dict[str, str]


class SessionListAnswer(Answer):
    """A page of sessions."""

    object: Literal["list"]
    data: list[SessionAnswer]
    has_more: bool
    next: str | None


class SessionDeleted(Answer):
    """A session that has ended."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class StatusAnswer(Answer):
    """What a probe says."""

    status: Literal["ok", "ready"]


ANSWERS: tuple[type[Answer], ...] = (
    *(ErrorAnswer, ChatAnswer, ChatChunk, CompletionAnswer, CompletionChunk, ModelAnswer, ModelList),
    *(TokenizeAnswer, DetokenizeAnswer, SessionAnswer, SessionListAnswer, SessionDeleted, StatusAnswer),
)
