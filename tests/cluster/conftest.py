"""Redis clients and worker records."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from gemline.cluster.connection import connect
from gemline.cluster.records import ModelCard, Role, WorkerRecord


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def record() -> WorkerRecord:
    card = ModelCard("gemma", "ab", 8192, 256000, (1, 107), "cd")
    return WorkerRecord("decode-1", Role.DECODE, "127.0.0.1:4242", card)
