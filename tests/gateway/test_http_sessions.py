"""/v1/sessions as any HTTP client sees it, over a real gateway and real workers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from support.in_process import MODEL, TENANT, InProcess
from support.session_talk import begin

from gemline.errors import TurnNotSaved
from gemline.gateway.http import create_app
from gemline.gateway.http.errors import error_response
from gemline.gateway.http_server import HttpServer

NOBODYS = "ses_" + "0" * 32
SYSTEM = {"role": "system", "content": "x"}
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 6}


def turn(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {**GREEDY, "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture
def app(platform: InProcess) -> FastAPI:
    return create_app(platform.gateway, platform.settings)


@pytest.fixture
async def http(app: FastAPI, platform: InProcess) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    headers = {"authorization": f"Bearer {platform.api_key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client


@pytest.fixture
async def session_id(http: httpx.AsyncClient) -> str:
    return str((await http.post("/v1/sessions", json={"model": MODEL})).json()["id"])


def error_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_a_session_is_made_talked_in_listed_forked_and_deleted(http: httpx.AsyncClient) -> None:
    made = (await http.post("/v1/sessions", json={"model": MODEL, "ttl_s": 60, "metadata": {"a": "b"}})).json()
    assert made.keys() == {
        *("id", "object", "model", "num_turns", "num_tokens", "created_at", "updated_at", "expires_at", "ttl_s"),
        *("owner_present", "kv_bytes", "metadata"),
    }
    assert (made["object"], made["num_turns"], made["ttl_s"], made["metadata"]) == ("session", 0, 60, {"a": "b"})
    path = f"/v1/sessions/{made['id']}"
    answer = (await http.post(f"{path}/chat/completions", json=turn())).json()
    assert answer["object"] == "chat.completion"
    found = (await http.get(path)).json()
    assert (found["num_turns"], found["owner_present"]) == (1, True)
    assert found["num_tokens"] == answer["usage"]["total_tokens"] + 1
    fork = (await http.post(f"{path}/fork")).json()
    other = (await http.post(f"{path}/fork", json={"ttl_s": 5, "metadata": {}})).json()
    assert (fork["num_turns"], fork["ttl_s"], fork["metadata"]) == (1, 60, {"a": "b"})
    assert (other["num_turns"], other["ttl_s"], other["metadata"]) == (1, 5, {})
    first = (await http.get("/v1/sessions", params={"limit": 2})).json()
    second = (await http.get("/v1/sessions", params={"limit": 2, "after": first["next"]})).json()
    assert [session["id"] for session in first["data"] + second["data"]] == [other["id"], fork["id"], made["id"]]
    assert (first["has_more"], second["has_more"], second["next"]) == (True, False, None)
    assert (await http.delete(path)).json() == {"id": made["id"], "object": "session.deleted", "deleted": True}
    assert error_of(await http.get(path)) == (404, "session_not_found", "session_id")


async def test_openais_own_client_talks_in_a_session_by_its_address(
    app: FastAPI, platform: InProcess, http: httpx.AsyncClient, session_id: str
) -> None:
    server = HttpServer(app, platform.settings)
    await server.start()
    address = f"http://{server.address}/v1/sessions/{session_id}"
    client = openai.AsyncOpenAI(base_url=address, api_key=platform.api_key, max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "Tell me a story of some length, please."}]
    whole = await client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8)
    stream = await client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}, max_tokens=8
    )
    chunks = [chunk async for chunk in stream]
    assert whole.usage is not None
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens > whole.usage.total_tokens
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= (whole.usage.total_tokens - 1) // 16 * 16 > 0
    assert (await http.get(f"/v1/sessions/{session_id}")).json()["num_turns"] == 2
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="gpt-9", messages=messages)
    assert caught.value.param == "model"
    await client.close()
    await server.stop()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": MODEL, "ttl_s": 0}, "ttl_s"),
        ({"model": MODEL, "ttl_s": 1.5}, "ttl_s"),
        ({"model": MODEL, "ttl_s": 10**30}, "ttl_s"),
        ({"model": MODEL, "metadata": {"a": 1}}, "metadata.a"),
        ({"model": MODEL, "metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"model": MODEL, "metadata": [1]}, "metadata"),
    ],
)
async def test_a_session_that_cannot_be_made_is_a_bad_request(
    http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    assert error_of(await http.post("/v1/sessions", json=body)) == (400, "invalid_request", param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": 2}, "invalid_request", "n"),
        ({"messages": []}, "invalid_request", "messages"),
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]},
            "invalid_request",
            "messages",
        ),
        ({"model": "gpt-9"}, "invalid_request", "model"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "context_length_exceeded", "messages"),
        ({"stream_options": {}}, "invalid_request", "stream_options"),
        ({"tools": [{}]}, "invalid_request", "tools[0].type"),
    ],
)
async def test_a_turn_that_cannot_be_taken_is_a_bad_request_and_changes_nothing(
    http: httpx.AsyncClient, session_id: str, fields: dict[str, Any], code: str, param: str
) -> None:
    path = f"/v1/sessions/{session_id}/chat/completions"
    assert error_of(await http.post(path, json=turn() | fields)) == (400, code, param)
    assert (await http.post(path, json=turn())).status_code == 200
    assert (await http.get(f"/v1/sessions/{session_id}")).json()["num_turns"] == 1


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=-1", "limit=" + "9" * 50, "after=x"])
async def test_a_list_that_cannot_be_given_is_a_bad_request(http: httpx.AsyncClient, query: str) -> None:
    assert error_of(await http.get(f"/v1/sessions?{query}")) == (400, "invalid_request", query.partition("=")[0])


async def test_a_second_turn_at_once_is_a_conflict(
    http: httpx.AsyncClient, platform: InProcess, session_id: str
) -> None:
    async with await begin(platform.gateway.sessions, session_id, max_tokens=100, ignore_eos=True) as running:
        await anext(running)
        refused = await http.post(f"/v1/sessions/{session_id}/chat/completions", json=turn())
        assert error_of(refused) == (409, "conflict", None)


async def test_no_route_shows_one_tenants_sessions_to_another(
    app: FastAPI, http: httpx.AsyncClient, platform: InProcess, session_id: str
) -> None:
    other = {"authorization": f"Bearer {await platform.key_of('globex')}", "x-tenant": TENANT.tenant_id}
    paths = [path for path in app.openapi()["paths"] if path.startswith("/v1/sessions/")]
    assert len(paths) == 3
    for path in paths:
        for method in app.openapi()["paths"][path]:
            body = turn() if path.endswith("completions") else {}
            texts = []
            for asked in (session_id, NOBODYS, "ses_1", "%2e%2e", "x" * 3000):
                url = path.replace("{session_id}", asked)
                answer = await http.request(method, url, json=body, headers=other)
                assert error_of(answer) == (404, "session_not_found", "session_id"), (method, url)
                texts.append(answer.json()["error"]["message"].partition("'")[0])
            assert len(set(texts)) == 1
    assert (await http.get("/v1/sessions", headers=other)).json()["data"] == []
    assert (await http.get(f"/v1/sessions/{session_id}")).json()["num_turns"] == 0


async def test_a_turn_that_the_session_lost_is_an_error_event_without_done(
    http: httpx.AsyncClient, platform: InProcess, session_id: str
) -> None:
    sessions = platform.gateway.sessions
    save = sessions._running_turns.save

    async def fail(*arguments: object) -> None:
        raise TurnNotSaved("the session may lack this turn")

    sessions._running_turns.save = fail  # type: ignore[assignment, method-assign]
    streamed = await http.post(f"/v1/sessions/{session_id}/chat/completions", json=turn(stream=True))
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert json.loads(events[-1])["error"]["code"] == "turn_not_saved"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert not any('finish_reason":"' in event for event in events)
    sessions._running_turns.save = save  # type: ignore[method-assign]


def test_a_client_that_retries_by_itself_is_told_not_to_send_an_answered_turn_again() -> None:
    answer = error_response(TurnNotSaved("the session may lack this turn"))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")


async def test_a_turn_need_not_name_the_model_and_tells_it(http: httpx.AsyncClient, session_id: str) -> None:
    body = {key: value for key, value in turn().items() if key != "model"}
    answer = await http.post(f"/v1/sessions/{session_id}/chat/completions", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, MODEL)
    refused = await http.post(f"/v1/sessions/{session_id}/chat/completions", json=body | {"model": "another"})
    assert error_of(refused) == (400, "invalid_request", "model")
