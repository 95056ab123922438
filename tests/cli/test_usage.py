"""`gemline usage` with a real Redis."""

import asyncio
import csv
import io
import json

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from gemline.cli.main import app
from gemline.cluster.limits import LimitStore, Reserved, UsageRecord


@pytest.fixture
def used(redis_url: str) -> str:
    """URL of a Redis with some records."""

    async def settle() -> None:
        async with Redis.from_url(redis_url) as redis:
            for number, tenant in enumerate(("acme", "acme", "other")):
                record = UsageRecord(f"req_{number}", tenant, "", "k1", "gemma", "stop", 10, 4, 5, 700)
                await LimitStore(redis).settle((), Reserved(0, None, None, None), 0, record)

    asyncio.run(settle())
    return redis_url


def usage(redis_url: str, *options: str) -> str:
    done = CliRunner().invoke(app(), ["usage", "--redis-url", redis_url, *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_table_adds_up_by_tenant_and_model(used: str) -> None:
    lines = usage(used).splitlines()
    headings = "tenant model requests prompt tokens of them cached completion tokens KV byte-seconds"
    assert lines[0].split() == headings.split()
    assert [line.split() for line in lines[1:]] == [
        ["acme", "gemma", "2", "20", "8", "10", "1400"],
        ["other", "gemma", "1", "10", "4", "5", "700"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_csv_and_json_have_every_record(used: str) -> None:
    rows = list(csv.DictReader(io.StringIO(usage(used, "--format", "csv"))))
    assert [row["request_id"] for row in rows] == ["req_0", "req_1", "req_2"]
    lines = usage(used, "--format", "json", "--tenant", "other").splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["req_2"]


def test_a_time_without_records_is_an_empty_table(used: str) -> None:
    assert len(usage(used, "--until", "2026-01-01").splitlines()) == 1
    assert len(usage(used, "--since", "1h", "--until", "2100-01-01").splitlines()) == 3
