"""The SDK and the command line as a user has them, and the public gRPC port, against the whole platform."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.commands import gemline
from support.metrics import metric
from support.stack import Running

from gemline.client import AsyncClient, Client, Message, RetryPolicy
from gemline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    GemlineError,
    InvalidRequest,
    ModelNotFound,
    Unauthenticated,
    Unavailable,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

HELLO = [Message("user", "Hello, who are you?")]
SERVICE = "gemline.v1.Inference"


@pytest.fixture
def client(split_stack: Running) -> Iterator[Client]:
    with Client(split_stack.ready["grpc"], api_key=split_stack.ready["api_key"]) as client:
        yield client


@pytest.fixture
async def aclient(split_stack: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(split_stack.ready["grpc"], api_key=split_stack.ready["api_key"]) as client:
        yield client


@pytest.fixture
def cli_home(split_stack: Running, tmp_path: Path) -> Path:
    """A cache folder whose ready file leads to the stack."""
    (tmp_path / "ready.json").write_text(json.dumps(split_stack.ready))
    return tmp_path


def is_idle(stack: Running) -> bool:
    """Whether the decode workers hold no request; their blocks are then all free."""
    return metric(stack, "decode", "gemline_requests") == 0


def num_free_blocks(stack: Running) -> float:
    return metric(stack, "decode", "gemline_kv_free_blocks")


def soon(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    limit_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < limit_s, "it did not happen"
        time.sleep(0.05)


def test_a_chat_is_answered_and_streamed_alike(client: Client) -> None:
    whole = client.chat(HELLO, max_tokens=16, temperature=0)
    with client.chat_stream(HELLO, max_tokens=16, temperature=0) as stream:
        pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.text == whole.text
    assert stream.finish_reason == whole.finish_reason
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert stream.request_id != whole.request_id


async def test_the_async_client_gives_the_same(client: Client, aclient: AsyncClient) -> None:
    whole = await aclient.generate("Once upon a time", max_tokens=16, temperature=0, logprobs=1)
    assert len(whole.logprobs) == whole.usage.completion_tokens
    async with aclient.generate_stream("Once upon a time", max_tokens=16, temperature=0, logprobs=1) as stream:
        texts = [piece.text async for piece in stream]
    assert "".join(texts) == whole.text == client.generate("Once upon a time", max_tokens=16, temperature=0).text
    assert (stream.usage, stream.finish_reason) == (whole.usage, whole.finish_reason)
    chosen = [position.chosen for position in whole.logprobs]
    assert [position.chosen.token_id for position in stream.logprobs] == [token.token_id for token in chosen]


def test_tokens_are_counted_as_the_answer_counts_them(client: Client) -> None:
    answer = client.chat(HELLO, max_tokens=1)
    assert client.count_tokens(HELLO) == answer.usage.prompt_tokens
    assert client.count_tokens("Hello") == client.generate("Hello", max_tokens=1).usage.prompt_tokens


def test_the_model_is_listed_with_its_context(client: Client, split_stack: Running) -> None:
    (model,) = client.models()
    assert model.id == split_stack.model
    assert client.generate("x", max_tokens=1, model=model.id).usage.completion_tokens == 1
    with pytest.raises(ContextLengthExceeded, match=str(model.context_length)):
        client.generate("x", max_tokens=model.context_length)


def test_canceling_a_stream_frees_its_blocks(client: Client, split_stack: Running) -> None:
    soon(lambda: is_idle(split_stack))
    free = num_free_blocks(split_stack)
    stream = client.generate_stream("word " * 200, max_tokens=1500, ignore_eos=True)
    next(stream)
    soon(lambda: num_free_blocks(split_stack) < free)
    stream.cancel()
    assert list(stream) == []
    soon(lambda: is_idle(split_stack) and num_free_blocks(split_stack) == free)
    assert stream.finish_reason is None


async def test_a_canceled_task_frees_its_blocks(aclient: AsyncClient, split_stack: Running) -> None:
    await asyncio.to_thread(soon, lambda: is_idle(split_stack))
    free = num_free_blocks(split_stack)
    task = asyncio.create_task(aclient.generate("word " * 200, max_tokens=1500, ignore_eos=True))
    await asyncio.to_thread(soon, lambda: num_free_blocks(split_stack) < free)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(soon, lambda: is_idle(split_stack) and num_free_blocks(split_stack) == free)


def test_a_deadline_ends_the_answer_and_frees_its_blocks(client: Client, split_stack: Running) -> None:
    soon(lambda: is_idle(split_stack))
    free = num_free_blocks(split_stack)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        client.generate("word " * 200, max_tokens=1500, ignore_eos=True, timeout_s=0.3)
    soon(lambda: is_idle(split_stack) and num_free_blocks(split_stack) == free)


def test_errors_have_their_own_classes(client: Client, split_stack: Running) -> None:
    def fails(error: type[GemlineError], param: str | None, **options: object) -> None:
        with pytest.raises(error) as caught:
            client.chat(HELLO, **options)  # type: ignore[arg-type]  # that is the point
        assert (type(caught.value), caught.value.param) == (error, param)

    fails(InvalidRequest, "temperature", temperature=9.0)
    fails(InvalidRequest, "stop", stop=[""])
    fails(ContextLengthExceeded, "max_tokens", max_tokens=10**6)
    fails(ModelNotFound, "model", model="no-such-model")
    with pytest.raises(InvalidRequest, match="system") as caught:
        client.chat([Message("system", "Be brief."), *HELLO])
    assert caught.value.param == "messages"
    for key in (None, "gk_00000000_wrong"):
        with Client(split_stack.ready["grpc"], api_key=key) as stranger, pytest.raises(Unauthenticated):
            stranger.chat(HELLO)
    nobody = Client("127.0.0.1:1", retry=RetryPolicy(max_attempts=1))
    with nobody, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        nobody.models()


def test_health_is_open_and_reflection_tells_the_service_to_a_key(split_stack: Running) -> None:
    with grpc.insecure_channel(split_stack.ready["grpc"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection.ServerReflectionInfo(iter([asked]), timeout=10))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", f"Bearer {split_stack.ready['api_key']}"),)
        told = next(reflection.ServerReflectionInfo(iter([asked]), metadata=key, timeout=10))
        assert SERVICE in [service.name for service in told.list_services_response.service]


def test_gemline_generate_finds_the_stack_by_its_ready_file(client: Client, cli_home: Path) -> None:
    expected = client.generate("Once upon a time", max_tokens=12, temperature=0)
    options = ("generate", "Once upon a time", "--max-tokens", "12", "--temperature", "0")
    streamed = gemline(*options, "--stats", home=cli_home)
    assert (streamed.returncode, streamed.stdout) == (0, f"{expected.text}\n")
    assert f"{expected.usage.prompt_tokens} tokens in, {expected.usage.completion_tokens} out" in streamed.stderr
    whole = json.loads(gemline(*options, "--json", home=cli_home).stdout)
    assert (whole["text"], whole["finish_reason"]) == (expected.text, expected.finish_reason)


def test_gemline_chat_keeps_the_conversation(client: Client, cli_home: Path) -> None:
    first = client.chat([Message("user", "Hello")], max_tokens=8, temperature=0)
    turns = [Message("user", "Hello"), first.message, Message("user", "And then?")]
    second = client.chat(turns, max_tokens=8, temperature=0)
    chat = gemline("chat", "--max-tokens", "8", "--temperature", "0", home=cli_home, stdin=b"Hello\nAnd then?\n")
    assert (chat.returncode, chat.stdout) == (0, f"{first.text}\n{second.text}\n")
