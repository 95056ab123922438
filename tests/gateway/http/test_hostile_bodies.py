"""No bytes and no JSON, however odd, is a fault of ours."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from gateway.http.toy import CARD, KEY, ToyCore
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gemline.errors import InvalidRequest
from gemline.gateway.http import create_app
from gemline.gateway.http.parsing import parse_body
from gemline.gateway.http.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ForkBody,
    SessionBody,
    TokenizeBody,
    TurnBody,
)
from gemline.gateway.settings import GatewaySettings

SCHEMAS = (ChatBody, TurnBody, CompletionBody, TokenizeBody, DetokenizeBody, SessionBody, ForkBody)
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/detokenize"),
    *("/v1/sessions", "/v1/sessions/ses_0/fork", "/v1/sessions/ses_0/chat/completions"),
)

scalars = st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | anything, "content": st.text() | anything}
    ),
    max_size=3,
)
fields = {name: anything for schema in SCHEMAS for name in (*schema.model_fields, *schema.unsupported)}
# Bodies that are right but for a few fields: most random JSON is refused at its first field.
almost_right = st.builds(
    lambda few, right: {**right, **few},
    st.dictionaries(st.sampled_from(sorted(fields)), anything, max_size=3),
    st.fixed_dictionaries(
        {
            "model": st.just(CARD.model_id),
            "messages": messages | st.just([{"role": "user", "content": "hello"}]),
            "prompt": st.just("hello") | anything,
            "tokens": st.lists(st.integers(0, 300)) | anything,
            "max_tokens": st.integers(-1, 5),
            "ttl_s": st.integers(-1, 5),
            "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3) | anything,
        }
    ),
)


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(ToyCore(), GatewaySettings())


def statuses(app: Any, body: bytes) -> list[int]:
    async def post_all() -> list[int]:
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            return [(await client.post(path, content=body)).status_code for path in PATHS]

    return asyncio.run(post_all())


@given(st.binary(max_size=200))
def test_random_bytes_are_parsed_or_refused(body: bytes) -> None:
    for schema in SCHEMAS:
        try:
            parsed = parse_body(body, schema)
        except InvalidRequest:
            continue
        assert isinstance(parsed, schema)  # {} is a body to some


@pytest.mark.parametrize(
    ("schema", "field", "value"),
    [
        (ChatBody, "messages", [1] * 9999),
        (ChatBody, "messages", [{"role": "user", "content": ""}] * 9999),
        (ChatBody, "messages", [{"role": "user", "content": [1] * 9999}]),
        (ChatBody, "messages", [{"role": "user", "content": [{"type": "text", "text": ""}] * 9999}]),
        (TokenizeBody, "messages", [1] * 9999),
        (CompletionBody, "prompt", [""] * 9999),
        (CompletionBody, "prompt", [[1]] * 9999),
        (CompletionBody, "stop", [1] * 9999),
        (CompletionBody, "stop_token_ids", [""] * 9999),
        (CompletionBody, "logit_bias", {str(i): "" for i in range(9999)}),
        (DetokenizeBody, "tokens", [""] * 9999),
        (SessionBody, "metadata", {str(i): 0 for i in range(9999)}),
    ],
)
def test_a_long_list_that_is_wrong_is_refused_at_its_first_fault(schema: type[Body], field: str, value: object) -> None:
    fields = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "prompt": "x",
        "tokens": [],
        field: value,
    }
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(fields)
    assert caught.value.error_count() == 1
    with pytest.raises(InvalidRequest, match=field):
        parse_body(json.dumps(fields).encode(), schema)


@settings(max_examples=60)
@given(anything | almost_right)
def test_no_json_makes_a_fault(app: Any, value: object) -> None:
    assert all(status < 500 for status in statuses(app, json.dumps(value).encode()))


@settings(max_examples=40)
@given(almost_right, st.data())
def test_no_damage_to_a_good_body_makes_a_fault(app: Any, value: object, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert all(status < 500 for status in statuses(app, bytes(body)))
