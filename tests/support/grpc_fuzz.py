"""Hostile bytes for the public gRPC port: made from a seed, so that a run can be repeated."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

from google.protobuf import symbol_database
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from gemline.v1 import inference_pb2, sessions_pb2

METHODS: tuple[MethodDescriptor, ...] = (
    *inference_pb2.DESCRIPTOR.services_by_name["Inference"].methods,
    *sessions_pb2.DESCRIPTOR.services_by_name["Sessions"].methods,
)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"  # Watch never ends by itself


_NAMES = (
    *("traceparent", "x-request-id", "tracestate", "authorization", "x-odd"),
    *("user-agent", "grpc-accept-encoding", "grpc-retry-pushback-ms"),
)
_BINARY_NAMES = ("x", "grpc-status-details", "grpc-trace", "grpc-tags")


class Case(NamedTuple):
    """A call with these messages, as bytes, and metadata besides the key's."""

    path: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()


def path_of(method: MethodDescriptor) -> str:
    """As it stands in `:path`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def cases(seed: int, number: int, model: str) -> Iterator[Case]:
    """So many calls of all kinds."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[random.Random, str], Case], ...] = (
        _random_bytes,
        _mutated,
        _mutated,
        _mutated,
        _wild,
        _wild,
        _wrong_path,
        _odd_metadata,
        _wrong_number,
    )
    for _ in range(number):
        yield rng.choice(kinds)(rng, model)


def _random_bytes(rng: random.Random, model: str) -> Case:
    return Case(_any_path(rng), (rng.randbytes(rng.choice((0, 1, 2, 7, 64, 1000, 65_536))),))


def _mutated(rng: random.Random, model: str) -> Case:
    method = rng.choice(METHODS)
    data = bytearray(valid(method, model).SerializeToString())
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[at : at + rng.randint(1, 4)]
            case 3:
                data[at:at] = data[: rng.randint(0, 40)]
            case _:
                del data[at:]
    return Case(path_of(method), (bytes(data),))


def _wild(rng: random.Random, model: str) -> Case:
    """A message that can be read, with whatever its types allow in it."""
    method = rng.choice(METHODS)
    message: Any = valid(method, model)
    fill(rng, message, depth=3)
    if rng.random() < 0.5 and "model" in message.DESCRIPTOR.fields_by_name:
        message.model = model
    return Case(path_of(method), (message.SerializeToString(),))


def _wrong_path(rng: random.Random, model: str) -> Case:
    known = _any_path(rng)
    odd = (
        "/",
        "/x",
        known + "/",
        known.lower(),
        known[1:] + "x",
        "/" + "a" * 5000,
        "/gemline.v1.Inference/",
        "/../" + known,
        known + "?x=1",
        "/%00/%ff",
        "/gemline.internal.v1.Decode/Attach",
    )
    path = rng.choice(odd)
    return Case(path if path.startswith("/") else f"/{path}", (rng.randbytes(20),))


def _odd_metadata(rng: random.Random, model: str) -> Case:
    method = rng.choice(METHODS)
    odd = tuple(_odd_entry(rng) for _ in range(rng.choice((1, 1, 2, 100))))
    return Case(path_of(method), (valid(method, model).SerializeToString(),), odd)


def _odd_entry(rng: random.Random) -> tuple[str, str | bytes]:
    if rng.random() < 0.3:
        return f"{rng.choice(_BINARY_NAMES)}-bin", rng.randbytes(rng.choice((0, 1, 500)))
    size = rng.choice((0, 1, 30, 500, 7000))
    return rng.choice(_NAMES), "".join(chr(rng.randint(32, 126)) for _ in range(size))


def _wrong_number(rng: random.Random, model: str) -> Case:
    """No message, or several, where one is due."""
    method = rng.choice(METHODS)
    return Case(path_of(method), (valid(method, model).SerializeToString(),) * rng.choice((0, 2, 5)))


def _any_path(rng: random.Random) -> str:
    return rng.choice((*map(path_of, METHODS), REFLECTION, HEALTH))


def valid(method: MethodDescriptor, model: str) -> Message:
    """A good request, as short as can be where it generates."""
    request: Message = symbol_database.Default().GetSymbol(method.input_type.full_name)()
    fields, message = method.input_type.fields_by_name, cast("Any", request)
    if "model" in fields:
        message.model = model
    if "sampling" in fields:
        message.sampling.max_tokens = 1
    if "messages" in fields:
        message.messages.add(role=inference_pb2.ROLE_USER, content="Hello")
    elif "prompt" in fields:
        message.prompt = "Hello"
    return request


def fill(rng: random.Random, message: Message, depth: int) -> None:
    """Put anything that their types allow into some of its fields."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.6 or depth == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(rng, message, field)
        elif field.message_type is not None and field.is_repeated:
            for _ in range(rng.choice((0, 1, 3))):
                fill(rng, getattr(message, field.name).add(), depth - 1)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(rng, getattr(message, field.name), depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(rng, field) for _ in range(rng.choice((0, 1, 3, 70, 5000))))
        else:
            setattr(message, field.name, _value(rng, field))


def _fill_map(rng: random.Random, message: Message, field: Any) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for _ in range(rng.choice((0, 1, 20, 2000))):
        getattr(message, field.name)[_value(rng, key)] = _value(rng, value)


def _value(rng: random.Random, field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 100)))
        case FieldDescriptor.CPPTYPE_STRING:
            odd = ("", " ", "\0", "\u2028", "\U0010ffff", "<bos>", "{" * 200, "(" * 200, "a" * 3000, "é" * 9, "ses_0")
            return rng.choice(odd)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice((0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan")))
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 3, 99, -1, 2**31 - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice((0, 1, 2, 2**31, 2**32 - 1))
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice((0, 1, 2**63, 2**64 - 1))
        case _:
            return rng.choice((0, 1, -1, 2**31 - 1, -(2**31)))
