"""From Python values to the public API's request messages. What cannot even be written down is refused here."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from gemline.client.formats import response_format, tool_options
from gemline.client.types import Message, Messages, Sampling
from gemline.errors import InvalidRequest, Unavailable
from gemline.v1 import inference_pb2 as pb
from gemline.v1 import sessions_pb2

PAGE = 100  # sessions that are asked for at once

Named = pb.GenerateRequest | pb.GenerateStreamRequest | pb.ChatRequest | pb.ChatStreamRequest | pb.CountTokensRequest
"""A request that names a model."""

Generate = TypeVar("Generate", pb.GenerateRequest, pb.GenerateStreamRequest)
Chat = TypeVar("Chat", pb.ChatRequest, pb.ChatStreamRequest)

Kept = TypeVar("Kept", sessions_pb2.CreateSessionRequest, sessions_pb2.ForkSessionRequest)

_ROLES = {"user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "system": pb.ROLE_SYSTEM, "tool": pb.ROLE_TOOL}
_BANDS = {"priority": pb.BAND_PRIORITY, "default": pb.BAND_DEFAULT, "batch": pb.BAND_BATCH}
_NOT_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "band")  # they have messages or fields of their own


def generate(kind: type[Generate], model: str | None, prompt: str, sampling: Sampling) -> Generate:
    """A request to continue `prompt`; raises InvalidRequest, naming the field."""
    options, band = sampling_options(sampling), _band(sampling)
    return kind(model=model or "", prompt=_text("prompt", prompt), sampling=options, band=band)


def chat(kind: type[Chat], model: str | None, messages: Messages, sampling: Sampling) -> Chat:
    """A request for the next turn; raises InvalidRequest, naming the field."""
    options, band = sampling_options(sampling), _band(sampling)
    return kind(model=model or "", messages=conversation(messages), sampling=options, band=band)


def count_tokens(model: str | None, prompt: str | Messages) -> pb.CountTokensRequest:
    """A request for the length of raw text (a str) or of a conversation."""
    if isinstance(prompt, str):
        return pb.CountTokensRequest(model=model or "", prompt=_text("prompt", prompt))
    return pb.CountTokensRequest(model=model or "", messages=conversation(prompt))


def turn(session_id: str, message: str | Messages, sampling: Sampling) -> sessions_pb2.ChatSessionRequest:
    """A request for a session's next turn: one message of the user's (a str), or several."""
    messages = [Message("user", message)] if isinstance(message, str) else message
    options, band = sampling_options(sampling), _band(sampling)
    return sessions_pb2.ChatSessionRequest(
        session_id=session_id, messages=conversation(messages), sampling=options, band=band
    )


def create_session(ttl_s: int | None, metadata: Mapping[str, str] | None) -> sessions_pb2.CreateSessionRequest:
    """A request for a new session; its model is to be named."""
    return _kept(sessions_pb2.CreateSessionRequest(), ttl_s, metadata)


def fork_session(
    session_id: str, ttl_s: int | None, metadata: Mapping[str, str] | None
) -> sessions_pb2.ForkSessionRequest:
    """A request for a session with the same turns."""
    return _kept(sessions_pb2.ForkSessionRequest(session_id=session_id), ttl_s, metadata)


def get_session(session_id: str) -> sessions_pb2.GetSessionRequest:
    """A request for what a session is."""
    return sessions_pb2.GetSessionRequest(session_id=_text("session_id", session_id))


def conversation(messages: Messages) -> list[pb.Message]:
    """The messages on the wire; their order and alternation are the gateway's to judge."""
    return [_message(index, message) for index, message in enumerate(messages)]


def sampling_options(sampling: Sampling) -> pb.SamplingOptions:
    """The options on the wire. Ranges are the gateway's to judge; here a value need only fit its field."""
    options = pb.SamplingOptions()
    given: Mapping[str, object] = sampling
    if sampling.get("tools"):
        parallel = sampling.get("parallel_tool_calls")
        options.tools.CopyFrom(tool_options(sampling.get("tools") or (), sampling.get("tool_choice"), parallel))
    for name, value in given.items():
        if name in _NOT_OPTIONS:
            continue
        if name not in pb.SamplingOptions.DESCRIPTOR.fields_by_name:
            raise TypeError(f"unexpected keyword argument {name!r}: no such sampling option")
        if value is not None:
            options.MergeFrom(_one_option(name, value))
    return options


def only_model(models: Iterable[pb.Model]) -> str:
    """The name to use when the caller gave none: that of the only model there is."""
    match [model.id for model in models]:
        case [name]:
            return name
        case []:
            raise Unavailable("the gateway serves no model at present")
        case names:
            raise InvalidRequest(f"model must be one of {', '.join(names)}: none was given", param="model")


def _message(index: int, message: Message | Mapping[str, str]) -> pb.Message:
    field = f"messages[{index}]"
    if isinstance(message, Mapping) and {"role", "content"} <= message.keys() <= {"role", "content", "tool_call_id"}:
        message = Message(message["role"], message["content"], tool_call_id=message.get("tool_call_id", ""))
    if not isinstance(message, Message):
        raise InvalidRequest(f"{field} must be a Message or a mapping of role and content alone", param="messages")
    if message.role not in _ROLES:
        raise InvalidRequest(f"{field}.role must be one of {', '.join(_ROLES)}, not {message.role!r}", param="messages")
    return pb.Message(
        role=_ROLES[message.role],
        content=_text(f"{field}.content", message.content, param="messages"),
        tool_calls=[pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
    )


def _kept(request: Kept, ttl_s: int | None, metadata: Mapping[str, str] | None) -> Kept:
    """The request with a session's time and metadata."""
    try:
        if ttl_s is not None:
            request.ttl_s = ttl_s
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"ttl_s cannot be {ttl_s!r}: {error}", param="ttl_s") from None
    for key, value in (metadata or {}).items():
        text = _text("metadata", value)
        request.metadata[_text("metadata", key)] = text
    return request


def _text(field: str, value: str, *, param: str | None = None) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} must be a str, not {type(value).__name__}", param=param or field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} is not valid Unicode: {error}", param=param or field) from None
    return value


def _band(sampling: Sampling) -> pb.Band.ValueType:
    asked = sampling.get("band")
    if asked is None:
        return pb.BAND_UNSPECIFIED
    if asked not in _BANDS:
        raise InvalidRequest(f"band must be one of {', '.join(_BANDS)}, not {asked!r}", param="band")
    return _BANDS[asked]


def _one_option(name: str, value: object) -> pb.SamplingOptions:
    if name == "stop" and isinstance(value, str):
        value = [value]
    if name == "response_format" and isinstance(value, Mapping):
        value = response_format(value)
    try:
        return pb.SamplingOptions(**{name: value})  # type: ignore[arg-type]  # protobuf checks it, at run time
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} cannot be {value!r}: {error}", param=name) from None
