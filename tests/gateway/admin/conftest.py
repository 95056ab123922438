"""The admin API over a real Redis, in the test's own process."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from gemline.cluster.operations import Operations, operating
from gemline.gateway.admin import create_admin_app
from gemline.gateway.settings import GatewaySettings

ADMIN_KEY = "ga_sixteen_and_more"


@pytest.fixture
async def operations(redis_url: str) -> AsyncIterator[Operations]:
    async with operating(redis_url) as operations:
        yield operations


@pytest.fixture
def app(operations: Operations) -> FastAPI:
    return create_admin_app(operations, GatewaySettings(admin_key=ADMIN_KEY))


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Has the admin key."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/v1", headers=headers) as client:
        yield client
