"""Models, tokens, probes and documents."""

from typing import Any

import httpx
import openai
import pytest
from gateway.http.toy import CARD, ToyCore

MODEL = CARD.model_id


def test_models_are_listed(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "gemline")
    assert model.created > 0


def test_a_model_whose_name_has_a_slash_is_found(client: openai.OpenAI, http: httpx.Client) -> None:
    assert client.models.retrieve(MODEL).id == MODEL
    details = http.get(f"/v1/models/{MODEL}").json()
    assert details["max_model_len"] == CARD.context_length
    assert (details["dtype"], details["quantization"], details["kv_dtype"]) == ("float32", "int8", "float8_e4m3")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("fields", [{"prompt": "abc"}, {"messages": [{"role": "user", "content": "abc"}]}])
def test_text_becomes_tokens(http: httpx.Client, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/tokenize", json={"model": MODEL, **fields})
    assert answer.json() == {"tokens": [97, 98, 99], "count": 3, "max_model_len": CARD.context_length}


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])
def test_tokenize_takes_either_a_prompt_or_messages(http: httpx.Client, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/tokenize", json={"model": MODEL, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


def test_tokens_become_text(http: httpx.Client) -> None:
    answer = http.post("/v1/detokenize", json={"model": MODEL, "tokens": [226, 130, 172]})
    assert answer.json() == {"text": "€"}


@pytest.mark.parametrize(("tokens", "param"), [([256], "tokens"), ([-1], "tokens[0]"), (["a"], "tokens[0]")])
def test_tokens_that_are_none_are_named(http: httpx.Client, tokens: list[object], param: str) -> None:
    answer = http.post("/v1/detokenize", json={"model": MODEL, "tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_the_probes_tell_life_from_readiness(http: httpx.Client, core: ToyCore) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}
    core.is_ready = False
    try:
        assert http.get("/healthz").status_code == 200
        answer = http.get("/readyz")
    finally:
        core.is_ready = True
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"


def test_metrics_are_prometheus_text(http: httpx.Client) -> None:
    assert http.get("/metrics").headers["content-type"].startswith("text/plain; version=")
    assert http.head("/metrics").status_code == 200
