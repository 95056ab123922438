"""In which tier a request was served is told with its answer: no more urgent than its tenant may be."""

import json
from typing import Any

import httpx
import pytest
from gateway.http.toy import CARD

ASKED = [(None, "default"), ("auto", "default"), ("flex", "flex"), ("priority", "default"), ("default", "default")]


def ask(path: str, tier: str | None, **more: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "abc"}]} if "chat" in path else {"prompt": "abc"}
    return {"model": CARD.model_id, "max_tokens": 3, "service_tier": tier, **prompt, **more}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(("tier", "served"), ASKED)
def test_a_whole_answer_tells_it(http: httpx.Client, path: str, tier: str | None, served: str) -> None:
    assert http.post(path, json=ask(path, tier)).json()["service_tier"] == served


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_tells_it_where_choices_end_and_with_the_usage(http: httpx.Client, path: str) -> None:
    body = ask(path, "flex", stream=True, n=2, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in http.post(path, json=body).text.splitlines() if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    for chunk in chunks:
        ends = not chunk["choices"] or chunk["choices"][0]["finish_reason"] is not None
        assert chunk.get("service_tier") == ("flex" if ends else None)
    assert sum("service_tier" in chunk for chunk in chunks) == 3
