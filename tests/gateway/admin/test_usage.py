"""Usage over the admin API: pages, exports, sums, filters."""

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gemline.cluster.limits import LimitStore, Reserved, UsageRecord
from gemline.cluster.usage import PAGE_RECORDS, UsageLog
from gemline.errors import Unavailable


async def use(redis_url: str, num: int, tenant: str = "acme", model: str = "gemma") -> None:
    async with Redis.from_url(redis_url) as redis:
        for number in range(num):
            record = UsageRecord(f"{tenant}-{number}", tenant, "web", "k1", model, "stop", 10, 4, 5, 7)
            await LimitStore(redis).settle((), Reserved(0, None, None, None), 0, record)


async def test_json_comes_in_pages(admin: httpx.AsyncClient, redis_url: str) -> None:
    await use(redis_url, 5)
    first = (await admin.get("/usage", params={"limit": 3})).json()
    assert (len(first["data"]), first["has_more"]) == (3, True)
    second = (await admin.get("/usage", params={"limit": 3, "after": first["next"]})).json()
    assert (len(second["data"]), second["has_more"], second["next"]) == (2, False, None)
    records = first["data"] + second["data"]
    assert [it["request_id"] for it in records] == [f"acme-{number}" for number in range(5)]
    assert (records[0]["tenant"], records[0]["prompt_tokens"], records[0]["at_ms"] > 0) == ("acme", 10, True)


async def test_csv_and_jsonl_have_everything(admin: httpx.AsyncClient, redis_url: str) -> None:
    await use(redis_url, PAGE_RECORDS + 5)
    answer = await admin.get("/usage", params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == PAGE_RECORDS + 5
    assert rows[0]["request_id"] == "acme-0"
    lines = (await admin.get("/usage", params={"format": "jsonl"})).text.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [row["request_id"] for row in rows]
    assert (await admin.get("/usage", params={"format": "jsonl", "tenant": "none"})).text == ""


async def test_sums_are_paged(admin: httpx.AsyncClient, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemline.cluster.usage.MAX_SCANNED", PAGE_RECORDS)
    await use(redis_url, PAGE_RECORDS + 3)
    first = (await admin.get("/usage/summary")).json()
    assert (first["has_more"], first["data"][0]["num_requests"]) == (True, PAGE_RECORDS)
    last = (await admin.get("/usage/summary", params={"after": first["next"]})).json()
    assert (last["has_more"], last["next"], last["data"][0]["num_requests"]) == (False, None, 3)
    assert (await admin.get("/usage/summary", params={"after": "x"})).status_code == 400


async def test_filters_and_sums(admin: httpx.AsyncClient, redis_url: str) -> None:
    await use(redis_url, 3)
    await use(redis_url, 2, tenant="other", model="gemma-b")
    only = (await admin.get("/usage", params={"tenant": "other", "project": "web"})).json()["data"]
    assert {it["tenant"] for it in only} == {"other"}
    sums = (await admin.get("/usage/summary")).json()["data"]
    assert [(it["tenant"], it["model"], it["num_requests"], it["completion_tokens"]) for it in sums] == [
        ("acme", "gemma", 3, 15),
        ("other", "gemma-b", 2, 10),
    ]
    assert (await admin.get("/usage/summary", params={"since": "1h", "tenant": "acme"})).json()["data"] == sums[:1]
    for query in ({"until": "1h"}, {"since": "2100-01-01"}, {"until": "2026-01-01T00:00:00Z"}):
        assert (await admin.get("/usage/summary", params=query)).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"tennant": "acme"}, "tennant"),
        ({"since": "yesterday"}, "since"),
        ({"until": "-1"}, "until"),
        ({"format": "xml"}, "format"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "5", "format": "csv"}, "limit"),
        ({"after": "0-0 "}, "after"),
        ({"after": "x", "format": "csv"}, "after"),
    ],
)
async def test_a_question_that_is_none_is_refused_by_name(
    admin: httpx.AsyncClient, query: dict[str, str], param: str
) -> None:
    answer = await admin.get("/usage", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_parameter_that_is_given_twice_is_refused(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/usage?tenant=a&tenant=b")).status_code == 400


async def test_an_export_that_cannot_go_on_breaks_off(
    admin: httpx.AsyncClient, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that looks like the real one would be a bill with records missing."""
    await use(redis_url, PAGE_RECORDS + 1)
    pages = UsageLog.pages

    async def broken(self: UsageLog, *arguments: Any) -> AsyncIterator[object]:
        async for page in pages(self, *arguments):
            yield page
            raise Unavailable("Redis does not answer")

    monkeypatch.setattr(UsageLog, "pages", broken)
    with pytest.raises(Unavailable):  # the server closes the connection without the last chunk
        await admin.get("/usage", params={"format": "csv"})
