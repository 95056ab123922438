"""Usage records: read in pages and in part, added up, written as CSV and JSON, never all of them in memory."""

import csv
import io
import json

import pytest
from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from gemline.cluster import usage as usage_module
from gemline.cluster.limit_scripts import USAGE
from gemline.cluster.limits import LimitStore, Reserved, UsageRecord
from gemline.cluster.usage import PAGE_RECORDS, UsageFilter, UsageLog
from gemline.cluster.usage_export import COLUMNS, csv_text, jsonl_text
from gemline.errors import ConfigurationError


@pytest.fixture
def log(redis: Redis) -> UsageLog:
    return UsageLog(redis)


async def use(redis: Redis, num: int, tenant: str = "acme", project: str = "", model: str = "gemma") -> None:
    for number in range(num):
        record = UsageRecord(f"{tenant}-{model}-{number}", tenant, project, "k1", model, "stop", 10, 4, 5, 7)
        await LimitStore(redis).settle((), Reserved(0, None, None, None), 0, record)


async def ids(log: UsageLog, wanted: UsageFilter) -> list[str]:
    return [entry.record.request_id async for page in log.pages(wanted) for entry in page.entries]


async def test_pages_hold_all_records_once_and_in_order(redis: Redis, log: UsageLog) -> None:
    await use(redis, 2 * PAGE_RECORDS + 3)
    pages = [page async for page in log.pages(UsageFilter())]
    assert [len(page.entries) for page in pages] == [PAGE_RECORDS, PAGE_RECORDS, 3]
    found = [entry.record.request_id for page in pages for entry in page.entries]
    assert found == [f"acme-gemma-{number}" for number in range(2 * PAGE_RECORDS + 3)]


async def test_a_page_says_where_the_next_one_begins(redis: Redis, log: UsageLog) -> None:
    await use(redis, 5)
    found, after = [], ""
    while True:
        page = await log.page(UsageFilter(), 2, after)
        found += [entry.record.request_id for entry in page.entries]
        if not (after := page.last_id):
            break
    assert found == [f"acme-gemma-{number}" for number in range(5)]


async def test_a_page_of_few_among_many_ends_and_can_be_gone_on_from(
    redis: Redis, log: UsageLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "PAGE_RECORDS", 2)
    monkeypatch.setattr(usage_module, "MAX_SCANNED", 4)
    await use(redis, 5)
    await use(redis, 1, tenant="rare")
    page = await log.page(UsageFilter(tenant="rare"))
    assert (page.entries, page.last_id != "") == ((), True)
    page = await log.page(UsageFilter(tenant="rare"), after=page.last_id)
    assert ([entry.record.tenant for entry in page.entries], page.last_id) == (["rare"], "")


async def test_a_filter_takes_its_own_alone(redis: Redis, log: UsageLog) -> None:
    await use(redis, 2)
    await use(redis, 1, tenant="other", project="web")
    assert await ids(log, UsageFilter(tenant="other")) == ["other-gemma-0"]
    assert await ids(log, UsageFilter(tenant="acme", project="web")) == []
    assert len(await ids(log, UsageFilter(key_id="k1"))) == 3


def fields_of(request_id: str) -> dict[FieldT, EncodableT]:
    """A record as Redis has it."""
    return {"request_id": request_id, "tenant": "a", "project": "", "key_id": "", "model": "m", "outcome": ""}


async def test_since_is_taken_and_until_is_not(redis: Redis, log: UsageLog) -> None:
    for at_ms in (1000, 2000, 3000):
        for number in range(2):
            await redis.xadd(USAGE, fields_of(str(at_ms)), id=f"{at_ms}-{number}")
    assert await ids(log, UsageFilter(since_ms=2000)) == ["2000", "2000", "3000", "3000"]
    assert await ids(log, UsageFilter(until_ms=2000)) == ["1000", "1000"]
    assert await ids(log, UsageFilter(since_ms=1001, until_ms=3000)) == ["2000", "2000"]
    assert await ids(log, UsageFilter(until_ms=0)) == []
    assert await ids(log, UsageFilter(since_ms=3000, until_ms=1000)) == []


async def test_sums_are_by_tenant_and_model(redis: Redis, log: UsageLog) -> None:
    await use(redis, 3)
    await use(redis, 2, model="gemma-b")
    await use(redis, 1, tenant="other")
    sums = await log.sums(UsageFilter())
    assert [(it.tenant, it.model, it.num_requests) for it in sums] == [
        ("acme", "gemma", 3),
        ("acme", "gemma-b", 2),
        ("other", "gemma", 1),
    ]
    first = sums[0]
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens, first.kv_byte_seconds) == (
        *(30, 12, 15),
        21,
    )


async def test_sums_of_many_records_come_in_pages_that_add_up(
    redis: Redis, log: UsageLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemline.cluster.usage.MAX_SCANNED", PAGE_RECORDS)
    await use(redis, PAGE_RECORDS + 1)
    await use(redis, 2, tenant="other")
    first = await log.sums_page(UsageFilter())
    assert [(it.tenant, it.num_requests) for it in first.sums] == [("acme", PAGE_RECORDS)]
    rest = await log.sums_page(UsageFilter(), first.last_id)
    assert [(it.tenant, it.num_requests) for it in rest.sums] == [("acme", 1), ("other", 2)]
    assert rest.last_id == ""
    whole = await log.sums(UsageFilter())
    assert [(it.tenant, it.num_requests, it.prompt_tokens) for it in whole] == [
        ("acme", PAGE_RECORDS + 1, 10 * (PAGE_RECORDS + 1)),
        ("other", 2, 20),
    ]
    nothing = await log.sums_page(UsageFilter(tenant="nobody"))
    assert nothing.sums == () and nothing.last_id == first.last_id


async def test_csv_has_a_header_and_a_row_for_each(redis: Redis, log: UsageLog) -> None:
    await use(redis, PAGE_RECORDS + 1, project="a,b\n")  # a name like this cannot be given; a row must bear it
    pieces = [piece async for piece in csv_text(log.pages(UsageFilter()))]
    assert len(pieces) == 2
    rows = list(csv.DictReader(io.StringIO("".join(pieces))))
    assert len(rows) == PAGE_RECORDS + 1
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["request_id"], rows[0]["project"], rows[0]["completion_tokens"]) == ("acme-gemma-0", "a,b\n", "5")
    assert len({row["entry_id"] for row in rows}) == len(rows)


async def test_of_nothing_csv_has_the_header_alone(log: UsageLog) -> None:
    assert [piece async for piece in csv_text(log.pages(UsageFilter()))] == [",".join(COLUMNS) + "\n"]


async def test_json_lines_have_numbers(redis: Redis, log: UsageLog) -> None:
    await use(redis, 2)
    text = "".join([piece async for piece in jsonl_text(log.pages(UsageFilter()))])
    assert [json.loads(line)["prompt_tokens"] for line in text.splitlines()] == [10, 10]


async def test_what_cannot_be_asked_is_refused(log: UsageLog) -> None:
    with pytest.raises(ConfigurationError, match="since must be from 0"):
        UsageFilter(since_ms=-1)
    with pytest.raises(ConfigurationError, match="limit must be from 1 to 1000, is 1001"):
        await log.page(UsageFilter(), 1001)
    with pytest.raises(ConfigurationError, match="after '1-1; DEL' is not an id"):
        await log.page(UsageFilter(), after="1-1; DEL")


async def test_records_of_a_later_release_can_be_read(redis: Redis, log: UsageLog) -> None:
    await redis.xadd(USAGE, fields_of("r") | {"new": "1"})
    assert await ids(log, UsageFilter()) == ["r"]
