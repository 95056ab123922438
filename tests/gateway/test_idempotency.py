"""Idempotency-Key: done once, answered as often as asked, a tenant's own, and free again when it came to nothing."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from support.in_process import MODEL, InProcess

from gemline.cluster.idempotency import IdempotencyStore
from gemline.errors import Unavailable, WorkerLost
from gemline.gateway.dispatch import Dispatch
from gemline.gateway.http import create_app
from gemline.gateway.inbox import Delivery

BODY = {"model": MODEL, "prompt": [2, 300, 301], "max_tokens": 8, "temperature": 1.0}


@pytest.fixture
async def http(platform: InProcess, redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    redis = Redis.from_url(redis_url)
    app = create_app(platform.gateway, platform.settings, IdempotencyStore(redis))
    headers = {"authorization": f"Bearer {platform.api_key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client
    await redis.aclose()


def key(name: str) -> dict[str, str]:
    return {"idempotency-key": name}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_sent_twice_is_answered_twice_and_done_once(
    http: httpx.AsyncClient, platform: InProcess, stream: bool
) -> None:
    first = await http.post("/v1/completions", json=BODY | {"stream": stream}, headers=key("a"))
    again = await http.post("/v1/completions", json=BODY | {"stream": stream}, headers=key("a"))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content  # sampled: a second draw would differ, and so would its id
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    other = await http.post("/v1/completions", json=BODY | {"stream": stream}, headers=key("b"))
    assert other.content != first.content


async def test_another_body_or_another_tenant_is_another_request(http: httpx.AsyncClient, platform: InProcess) -> None:
    first = await http.post("/v1/completions", json=BODY, headers=key("a"))
    refused = await http.post("/v1/completions", json=BODY | {"max_tokens": 9}, headers=key("a"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
    theirs = {"authorization": f"Bearer {await platform.key_of('globex')}", **key("a")}
    other = await http.post("/v1/completions", json=BODY, headers=theirs)
    assert other.json()["id"] != first.json()["id"]


async def test_while_the_first_runs_the_second_is_a_conflict(http: httpx.AsyncClient) -> None:
    body = BODY | {"max_tokens": 100, "ignore_eos": True}
    running = asyncio.create_task(http.post("/v1/completions", json=body, headers=key("a")))
    await asyncio.sleep(0.05)
    answers = [await http.post("/v1/completions", json=body, headers=key("a")) for _ in range(2)]
    assert answers[0].status_code == 409
    first = await running
    again = await http.post("/v1/completions", json=body, headers=key("a"))
    assert again.content == first.content


async def test_what_came_to_nothing_may_be_tried_again(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        async def nowhere(self: Dispatch) -> None:
            raise Unavailable("no worker")

        patch.setattr(Dispatch, "start", nowhere)
        assert (await http.post("/v1/completions", json=BODY, headers=key("a"))).status_code == 503
    assert (await http.post("/v1/completions", json=BODY, headers=key("a"))).status_code == 200


async def test_a_mistake_is_answered_the_same_again(http: httpx.AsyncClient) -> None:
    wrong = BODY | {"temperature": -1}
    first, again = [await http.post("/v1/completions", json=wrong, headers=key("a")) for _ in range(2)]
    assert (first.status_code, again.status_code) == (400, 400)


async def test_an_answer_that_is_too_long_is_not_given_twice(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemline.gateway.http.idempotency.MAX_ANSWER_BYTES", 10)
    await http.post("/v1/completions", json=BODY, headers=key("a"))
    again = await http.post("/v1/completions", json=BODY, headers=key("a"))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    refused = await http.post("/v1/completions", json=BODY, headers=key("x" * 256))
    assert "256 characters, over 255" in refused.json()["error"]["message"]


async def test_a_stream_that_broke_off_is_done_again(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    body = BODY | {"stream": True, "max_tokens": 30, "ignore_eos": True}
    take, num_taken = Dispatch.take, 0

    async def break_off(self: Dispatch) -> Delivery:
        nonlocal num_taken
        num_taken += 1
        if num_taken > 3:
            raise WorkerLost("the worker died")
        return await take(self)

    with monkeypatch.context() as patch:
        patch.setattr(Dispatch, "take", break_off)
        broken = await http.post("/v1/completions", json=body, headers=key("a"))
    assert b'data: {"error":' in broken.content
    again = await http.post("/v1/completions", json=body, headers=key("a"))
    assert again.content.endswith(b"data: [DONE]\n\n")
    assert "idempotent-replayed" not in again.headers
