"""Bad input gets a clear error that names the field, over HTTP and gRPC, and the platform goes on serving."""

from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from support.stack import Running

from gemline.v1 import inference_pb2 as pb
from gemline.v1.inference_pb2_grpc import InferenceStub

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

USER = {"role": "user", "content": "Hello"}


def post(stack: Running, path: str, **request: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {stack.ready['api_key']}"} | request.pop("headers", {})
    return httpx.post(f"{stack.base_url}{path}", headers=headers, timeout=30, **request)


def chat(stack: Running, **fields: Any) -> httpx.Response:
    return post(stack, "/chat/completions", json={"model": stack.model, "messages": [USER], "max_tokens": 2, **fields})


def assert_serves(stack: Running) -> None:
    assert chat(stack).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"99999999": 1}),
        ("logit_bias", {"word": 1}),
        ("top_logprobs", 21),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("stop_token_ids", [-1]),
        ("seed", 2**64),
        ("messages", []),
        ("messages", "Hello"),
        ("messages", [{"role": "narrator", "content": "Hello"}]),
        ("messages", [{"role": "assistant", "content": "Hello"}]),
        ("messages", [USER, USER]),
        ("model", ""),
        ("stream", "maybe"),
        ("tools", [{"type": "function", "function": {"name": "a name with spaces"}}]),
    ],
)
def test_an_invalid_field_is_named(split_stack: Running, field: str, value: Any) -> None:
    fields = {field: value, "logprobs": True} if field == "top_logprobs" else {field: value}
    answer = chat(split_stack, **fields)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert field in f"{error['param']} {error['message']}"
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": NaN}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_request_is_a_400(split_stack: Running, body: bytes) -> None:
    answer = post(split_stack, "/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_a_413_with_the_limit(split_stack: Running) -> None:
    body = b'{"model": "' + b"x" * (5 * 1024 * 1024) + b'"}'
    answer = post(split_stack, "/completions", content=body)
    assert answer.status_code == 413
    assert str(4 * 1024 * 1024) in answer.json()["error"]["message"]
    assert_serves(split_stack)


def test_every_answer_has_a_request_id_of_ours(split_stack: Running) -> None:
    for answer in (chat(split_stack), chat(split_stack, top_p=7), httpx.get(f"{split_stack.ready['http']}/healthz")):
        assert answer.headers["x-request-id"].startswith("req_")
    mine = post(split_stack, "/chat/completions", json={}, headers={"x-request-id": "mine"})
    assert mine.headers["x-request-id"] != "mine"


def test_nothing_but_the_probes_is_open_without_a_key(split_stack: Running) -> None:
    base = split_stack.ready["http"]
    for probe in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(base + probe).status_code == 200
    for path in ("/v1/models", "/v1/models/x", "/docs", "/openapi.json", "/", "/v1/nothing"):
        assert httpx.get(base + path).status_code == 401, path
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/detokenize"):
        assert httpx.post(base + path, json={}).status_code == 401, path


def call(stack: Running, method: str, request: Message, key: str | None = None) -> grpc.StatusCode:
    """The status of a unary call."""
    with grpc.insecure_channel(stack.ready["grpc"]) as channel:
        metadata = [("authorization", f"Bearer {stack.ready['api_key'] if key is None else key}")]
        try:
            getattr(InferenceStub(channel), method)(request, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            assert "Traceback" not in (error.details() or "")
            assert error.details()
            return error.code()
        return grpc.StatusCode.OK


def test_grpc_has_the_right_status_for_each_fault(split_stack: Running) -> None:
    model = split_stack.model
    hello = pb.Message(role=pb.ROLE_USER, content="Hello")
    good = pb.ChatRequest(model=model, messages=[hello], sampling=pb.SamplingOptions(max_tokens=2))
    assert call(split_stack, "Chat", good) is grpc.StatusCode.OK
    assert call(split_stack, "Chat", good, key="gk_wrong") is grpc.StatusCode.UNAUTHENTICATED
    assert call(split_stack, "ListModels", pb.ListModelsRequest(), key="") is grpc.StatusCode.UNAUTHENTICATED
    assert call(split_stack, "Chat", pb.ChatRequest(model="other", messages=[hello])) is grpc.StatusCode.NOT_FOUND
    system = pb.Message(role=pb.ROLE_SYSTEM, content="Be brief.")
    for request in (
        pb.ChatRequest(model=model),
        pb.ChatRequest(model=model, messages=[pb.Message(content="Hello")]),
        pb.ChatRequest(model=model, messages=[system, hello]),
        pb.ChatRequest(model=model, messages=[hello], sampling=pb.SamplingOptions(temperature=-1)),
        pb.ChatRequest(model=model, messages=[hello], sampling=pb.SamplingOptions(max_tokens=10**6)),
    ):
        assert call(split_stack, "Chat", request) is grpc.StatusCode.INVALID_ARGUMENT, request
    long = pb.GenerateRequest(model=model, prompt="word " * 20_000)
    assert call(split_stack, "Generate", long) is grpc.StatusCode.INVALID_ARGUMENT
    assert_serves(split_stack)
