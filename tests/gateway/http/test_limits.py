"""Bodies that are too large, announced or not."""

from collections.abc import Iterator

import httpx
import pytest
from gateway.http.toy import BODY_LIMIT_BYTES
from starlette.types import Message, Receive, Scope, Send

from gemline.errors import RequestTooLarge
from gemline.gateway.http.limits import BodyLimit


def chunks(num_bytes: int) -> Iterator[bytes]:
    for start in range(0, num_bytes, 65536):
        yield b" " * min(65536, num_bytes - start)


def test_an_announced_body_over_the_limit_is_refused_with_both_sizes(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", content=b" " * (BODY_LIMIT_BYTES + 1))
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert error["code"] == "request_too_large"
    assert error["message"] == f"the body has {BODY_LIMIT_BYTES + 1} bytes; at most {BODY_LIMIT_BYTES} are taken"


def test_a_chunked_body_over_the_limit_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", content=chunks(BODY_LIMIT_BYTES + 1))
    assert answer.status_code == 413
    assert f"at most {BODY_LIMIT_BYTES} are taken" in answer.json()["error"]["message"]


def test_a_body_of_just_the_limit_is_read(http: httpx.Client) -> None:
    for content in (b" " * BODY_LIMIT_BYTES, chunks(BODY_LIMIT_BYTES)):
        assert http.post("/v1/completions", content=content).status_code == 400


def test_the_key_is_asked_for_before_the_size(http: httpx.Client) -> None:
    answer = httpx.post(http.base_url.join("/v1/completions"), content=b" " * (BODY_LIMIT_BYTES + 1))
    assert answer.status_code == 401


async def test_no_more_is_read_than_the_limit_and_one_message() -> None:
    num_read = 0

    async def receive() -> Message:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": b"1234", "more_body": True}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await receive()

    async def send(message: Message) -> None:
        raise AssertionError

    with pytest.raises(RequestTooLarge):
        await BodyLimit(app, 10)({"type": "http", "headers": []}, receive, send)
    assert num_read == 3
