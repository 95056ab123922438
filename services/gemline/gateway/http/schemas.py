"""The bodies of OpenAI's clients, as far as we read them. Knows types; ranges are the core's matter."""

from typing import Annotated, ClassVar, Literal, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from gemline.cluster.sessions import MAX_TTL_S
from gemline.gateway.http.bodies import Body as Body
from gemline.gateway.http.bodies import Unsupported
from gemline.gateway.http.response_formats import ResponseFormat
from gemline.gateway.http.stated import stated, within
from gemline.gateway.http.tool_bodies import CallBody, ToolBody, ToolChoice
from gemline.gateway.requests import MAX_MESSAGES, Prompt
from gemline.gateway.sampling import (
    BIAS_RANGE,
    MAX_LOGIT_BIAS,
    MAX_STOP_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
    RANGES,
)
from gemline.gateway.session_checks import MAX_ENTRIES, MAX_KEY_CHARS, MAX_VALUE_CHARS
from gemline.gateway.tools import MAX_TOOLS

MAX_CHOICES = 8  # answers to one request: prompts times n
MAX_TOKEN_ID = 2**31 - 1  # the core knows the vocabulary; this much fits every wire
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
# Without it a body of a few megabytes has a million errors, and to gather them takes the event loop ten seconds.
FIRST_ERROR = Field(fail_fast=True)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object, info: ValidationInfo) -> object:
    """None where the model has only called functions; what was left out is None too."""
    if value is None and info.data.get("role") == "assistant" and info.data.get("tool_calls"):
        return []
    if value is None:
        raise PydanticCustomError("missing", "is required")
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("content", "must be a string or a list of text parts")


def _few(value: object) -> object:
    return _at_most(MAX_LOGIT_BIAS, value)


def _few_entries(value: object) -> object:
    return _at_most(MAX_ENTRIES, value)


def _at_most(most: int, value: object) -> object:
    if isinstance(value, dict) and len(value) > most:
        message = "has {num} entries; at most {most} are taken"
        raise PydanticCustomError("too_long", message, {"num": len(value), "most": most})
    return value


def _with_token_keys(biases: dict[str, float]) -> dict[str, float]:
    if all(key.isascii() and key.isdigit() and len(key) < 10 for key in biases):
        return biases
    raise PydanticCustomError("logit_bias", "must have token ids as keys")


def _as_prompts(value: object) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (Prompt(text=value),)
    if _are_token_ids(value):
        return (Prompt(token_ids=tuple(value)),)
    if isinstance(value, list) and len(value) > MAX_CHOICES and not isinstance(value[0], int):
        message = "has {num} prompts; at most {most} are answered"
        raise PydanticCustomError("too_long", message, {"num": len(value), "most": MAX_CHOICES})
    if isinstance(value, list) and value and all(isinstance(one, str) or _are_token_ids(one) for one in value):
        return tuple(prompt for one in value for prompt in _as_prompts(one))
    raise PydanticCustomError("prompt", "must be a string, a list of token ids, or a list of those")


def _are_token_ids(value: object) -> TypeGuard[list[int]]:
    # type() because a bool is an int to isinstance
    return (
        isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one <= MAX_TOKEN_ID for one in value)
    )


class TextPart(Body):
    """One part of a message."""

    type: Literal["text"]
    text: str


_Parts = Annotated[list[TextPart], stated(maxItems=MAX_MESSAGES)]


class ChatMessage(Body):
    """One turn. "developer" is the newer word for "system"; "tool" brings what a call gave."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[CallBody], Field(max_length=MAX_TOOLS), FIRST_ERROR] | None = None
    tool_call_id: str | None = None
    content: Annotated[
        list[TextPart],
        Field(max_length=MAX_MESSAGES),
        FIRST_ERROR,
        BeforeValidator(_as_parts, json_schema_input_type=str | _Parts | None),
    ] = Field(default=None, validate_default=True)

    @property
    def text(self) -> str:
        """The parts as they are, one after another."""
        return "".join(part.text for part in self.content)


Metadata = Annotated[
    dict[str, Annotated[str, stated(maxLength=MAX_VALUE_CHARS)]],
    BeforeValidator(_few_entries),
    stated(maxProperties=MAX_ENTRIES, propertyNames={"minLength": 1, "maxLength": MAX_KEY_CHARS}),
]
Lifetime = Annotated[int, stated(minimum=1, maximum=int(MAX_TTL_S))]  # in seconds
_Stop = Annotated[str, stated(minLength=1, maxLength=MAX_STOP_CHARS)]
_Stops = Annotated[list[_Stop], stated(maxItems=MAX_STOPS)]
_Ids = Annotated[list[TokenId], stated(minItems=1)]
_Prompts = Annotated[list[str | _Ids], stated(minItems=1, maxItems=MAX_CHOICES)]
Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES), FIRST_ERROR]


class StreamOptions(Body):
    """What a stream has besides the answer."""

    include_usage: bool | None = None


class GenerationBody(Body):
    """What chat and completions share; top_k, min_p, repetition_penalty, stop_token_ids, ignore_eos are our own."""

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, stated(minimum=1)] | None = None
    temperature: Annotated[float, within(RANGES["temperature"])] | None = None
    top_p: Annotated[float, within(RANGES["top_p"])] | None = None
    top_k: Annotated[int, within(RANGES["top_k"])] | None = None
    min_p: Annotated[float, within(RANGES["min_p"])] | None = None
    seed: Annotated[int, within(RANGES["seed"])] | None = None
    repetition_penalty: Annotated[float, within(RANGES["repetition_penalty"])] | None = None
    presence_penalty: Annotated[float, within(RANGES["presence_penalty"])] | None = None
    frequency_penalty: Annotated[float, within(RANGES["frequency_penalty"])] | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, within(BIAS_RANGE)]],
            BeforeValidator(_few),
            AfterValidator(_with_token_keys),
            stated(maxProperties=MAX_LOGIT_BIAS, propertyNames={"pattern": "^[0-9]{1,9}$"}),
        ]
        | None
    ) = None
    stop: Annotated[
        Annotated[list[str], FIRST_ERROR] | None,
        BeforeValidator(_as_list, json_schema_input_type=_Stop | _Stops | None),
    ] = None
    stop_token_ids: Annotated[list[TokenId], FIRST_ERROR, stated(maxItems=MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale", "fast"] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, stated(minimum=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS), FIRST_ERROR] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None

    unsupported: ClassVar[Unsupported] = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
    }


class TurnBody(ChatBody):
    """POST /v1/sessions/{session_id}/chat/completions: the session knows its model."""

    model: str = ""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), stated(maximum=1)] | None = None


class SessionBody(Body):
    """POST /v1/sessions."""

    model: Annotated[str, Field(min_length=1)]
    ttl_s: Lifetime | None = None
    metadata: Metadata | None = None


class ForkBody(Body):
    """POST /v1/sessions/{id}/fork."""

    ttl_s: Lifetime | None = None
    metadata: Metadata | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_as_prompts, json_schema_input_type=str | _Ids | _Prompts),
    ]
    logprobs: Annotated[int, within(RANGES["logprobs"])] | None = None
    echo: bool | None = None
    max_tokens: Annotated[int, stated(minimum=0, description="0 with `echo` alone; 16 unless it is given.")] | None = (
        None
    )

    unsupported: ClassVar[Unsupported] = {"suffix": ("",), "best_of": (1,)}


class TokenizeBody(Body):
    """POST /v1/tokenize: a prompt or messages."""

    model: Annotated[str, Field(min_length=1)]
    prompt: str | None = None
    messages: Messages | None = None


class DetokenizeBody(Body):
    """POST /v1/detokenize."""

    model: Annotated[str, Field(min_length=1)]
    tokens: Annotated[list[TokenId], FIRST_ERROR]
