"""The public API's OpenAPI document: complete, and true."""

from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gateway.http.toy import CARD, KEY, ToyCore
from support.openapi import (
    Operation,
    assert_fits,
    bodies_below,
    operations_of,
    references,
    resolved,
    routes_of,
)

from gemline.errors import BY_CODE
from gemline.gateway.http import create_app
from gemline.gateway.http.bodies import Body
from gemline.gateway.http.document import complete_document
from gemline.gateway.http.public_document import BODIES, PUBLIC
from gemline.gateway.http.schemas import GenerationBody
from gemline.gateway.sampling import RANGES
from gemline.gateway.settings import GatewaySettings

Document = dict[str, Any]
MODEL = CARD.model_id
USER = {"role": "user", "content": "abc"}
CHAT, COMPLETION = Operation("/v1/chat/completions", "post"), Operation("/v1/completions", "post")
ABSTRACT = {Body, GenerationBody}


@pytest.fixture
def document(http: httpx.Client) -> Document:
    found: Document = http.get("/openapi.json").json()
    return found


def test_every_route_and_method_is_in_it_and_nothing_else() -> None:
    app = create_app(ToyCore(), GatewaySettings())
    found = operations_of(app.openapi())
    assert found == routes_of(app)
    assert {CHAT, Operation("/metrics", "head"), Operation("/openapi.json", "get"), Operation("/docs", "get")} <= found


def test_a_route_that_says_nothing_of_itself_does_not_start() -> None:
    app = FastAPI(openapi_url=None)
    app.get("/silent")(lambda: None)
    with pytest.raises(KeyError, match="x-gives"):
        complete_document(app, PUBLIC)


async def test_every_method_that_is_not_in_it_is_refused_with_those_that_are() -> None:
    app = create_app(ToyCore(), GatewaySettings())
    headers = {"authorization": f"Bearer {KEY}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        for path, methods in app.openapi()["paths"].items():
            for method in {"get", "head", "post", "put", "patch", "delete", "options"} - methods.keys():
                answer = await client.request(method, path.format(model_id="m", session_id="s"))
                assert answer.status_code == 405
                assert set(answer.headers["allow"].lower().split(", ")) == methods.keys(), path


def test_every_reference_leads_somewhere(document: Document) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        assert resolved(document, reference)


def test_every_field_that_is_read_is_in_it_and_no_other(document: Document) -> None:
    schemas = document["components"]["schemas"]
    read = [body for body in bodies_below(Body) if body.__module__.startswith("gemline.gateway.http")]
    assert {body.__name__ for body in read if body not in ABSTRACT} <= schemas.keys()
    for body in read:
        if body not in ABSTRACT:
            fields = {field.alias or name for name, field in body.model_fields.items()}
            assert schemas[body.__name__]["properties"].keys() == fields | body.unsupported.keys(), body


def test_every_body_that_a_route_reads_is_in_it(document: Document) -> None:
    taken = {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "requestBody" in operation
    }
    assert taken == {body.__name__ for body in BODIES}
    fork = document["paths"]["/v1/sessions/{session_id}/fork"]["post"]
    assert not fork["requestBody"]["required"]


def test_the_key_and_what_is_open_without_one(document: Document) -> None:
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    is_open = {path for path, methods in document["paths"].items() for one in methods.values() if "security" in one}
    assert is_open == {"/healthz", "/readyz", "/metrics"}


def test_the_headers_are_in_it(document: Document) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    asked = {one["name"] for one in chat["parameters"]}
    assert asked == {"Idempotency-Key", "x-stainless-read-timeout", "traceparent", "x-request-id"}
    of_good, of_limit = chat["responses"]["200"]["headers"], chat["responses"]["429"]["headers"]
    assert {"x-request-id", "x-ratelimit-remaining-tokens", "idempotent-replayed"} <= of_good.keys()
    assert {"retry-after", "retry-after-ms", "x-should-retry"} <= of_limit.keys()
    listing = document["paths"]["/v1/sessions"]["get"]
    assert [one["name"] for one in listing["parameters"]] == ["limit", "after", "x-request-id"]


def test_each_status_names_its_codes(document: Document) -> None:
    for operation in operations_of(document):
        for status, response in document["paths"][operation.path][operation.method]["responses"].items():
            if status >= "400" and operation.method != "head":
                _, own = response["content"]["application/json"]["schema"]["allOf"]
                for code in own["properties"]["error"]["properties"]["code"]["enum"]:
                    assert str(BY_CODE[code].http_status) == status
    assert set(document["paths"]["/v1/chat/completions"]["post"]["responses"]) == {
        *("200", "400", "401", "403", "404", "409", "413", "429", "500", "503", "504")
    }


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_is_taken_at_the_ends_of_its_range_and_not_beyond(
    http: httpx.Client, document: Document, name: str
) -> None:
    own = document["components"]["schemas"]["CompletionBody"]["properties"][name]["anyOf"][0]
    for edge, beyond in ((own["minimum"], -1), (own["maximum"], 1)):
        taken, refused = ({"model": MODEL, "prompt": "a", name: it} for it in (edge, edge + beyond))
        assert http.post("/v1/completions", json=taken).status_code == 200, taken
        answer = http.post("/v1/completions", json=refused)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2, "stop": "k"}])
def test_chat_answers_are_what_it_says(
    http: httpx.Client, document: Document, stream: bool, more: dict[str, Any]
) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    body = {"model": MODEL, "messages": [USER], "max_tokens": 4, "stream": stream, **options, **more}
    answer = http.post(CHAT.path, json=body)
    assert answer.status_code == 200
    assert_fits(document, CHAT, answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"prompt": ["a", [98, 99]], "n": 2}])
def test_completions_are_what_it_says(
    http: httpx.Client, document: Document, stream: bool, more: dict[str, Any]
) -> None:
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 4, "stream": stream, **more}
    answer = http.post(COMPLETION.path, json=body)
    assert answer.status_code == 200
    assert_fits(document, COMPLETION, answer)


@pytest.mark.parametrize("prompt", ["!unavailable", "!bug", "!lost", "x" * 65])
@pytest.mark.parametrize("stream", [False, True])
def test_failures_are_what_it_says(http: httpx.Client, document: Document, prompt: str, stream: bool) -> None:
    answer = http.post(COMPLETION.path, json={"model": MODEL, "prompt": prompt, "max_tokens": 8, "stream": stream})
    assert "error" in answer.text
    assert_fits(document, COMPLETION, answer)


def test_sessions_models_and_tokens_are_what_it_says(http: httpx.Client, document: Document) -> None:
    made = http.post("/v1/sessions", json={"model": MODEL, "metadata": {"a": "b"}})
    assert_fits(document, Operation("/v1/sessions", "post"), made)
    one = "/v1/sessions/{session_id}"
    place = one.format(session_id=made.json()["id"])
    turn = {"messages": [USER], "max_tokens": 2}
    assert_fits(document, Operation("/v1/sessions", "get"), http.get("/v1/sessions"))
    assert_fits(document, Operation(one, "get"), http.get(place))
    assert_fits(document, Operation(f"{one}/fork", "post"), http.post(f"{place}/fork"))
    turned = http.post(f"{place}/chat/completions", json=turn)
    assert_fits(document, Operation(f"{one}/chat/completions", "post"), turned)
    assert_fits(document, Operation(one, "delete"), http.delete(place))
    assert_fits(document, Operation(one, "delete"), http.delete(place))
    assert_fits(document, Operation("/v1/models", "get"), http.get("/v1/models"))
    assert_fits(document, Operation("/v1/models/{model_id}", "get"), http.get(f"/v1/models/{MODEL}"))
    told = http.post("/v1/tokenize", json={"model": MODEL, "prompt": "a"})
    assert_fits(document, Operation("/v1/tokenize", "post"), told)
    told = http.post("/v1/detokenize", json={"model": MODEL, "tokens": [97]})
    assert_fits(document, Operation("/v1/detokenize", "post"), told)


def test_probes_are_what_it_says(http: httpx.Client, document: Document) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert_fits(document, Operation(path, "get"), http.get(path))
        head = http.head(path)
        assert (head.status_code, head.content) == (200, b"")


class _Loads(HTMLParser):
    """Gathers what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value) for name, value in attrs if name == "src" or (name == "href" and tag != "a")]
        assert tag != "script"


def test_the_page_shows_every_operation_and_schema_and_loads_nothing(http: httpx.Client, document: Document) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    loads = _Loads()
    loads.feed(answer.text)
    assert not loads.found
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}</code>" in answer.text
    for name in document["components"]["schemas"]:
        assert f"id={name}>" in answer.text


def test_what_is_not_supported_is_in_it_with_what_asks_for_nothing(http: httpx.Client, document: Document) -> None:
    best_of = document["components"]["schemas"]["CompletionBody"]["properties"]["best_of"]
    assert best_of["enum"] == [1, None]
    for value, status in ((1, 200), (None, 200), (2, 400), (True, 400)):
        answer = http.post(COMPLETION.path, json={"model": MODEL, "prompt": "a", "best_of": value})
        assert answer.status_code == status, value


def test_tools_that_cannot_be_are_refused_also_where_none_may_be_called(http: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "two words"}}]
    body = {"model": MODEL, "messages": [USER], "tools": tools, "tool_choice": "none"}
    answer = http.post(CHAT.path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
