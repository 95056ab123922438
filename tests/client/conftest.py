"""One set of cases for both clients: the sync one runs in a thread, so that each test is written once."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support.client_api import AsyncApi, ClientApi, SyncApi
from support.fake_gateway import FakeGateway, Served

from gemline.client import AsyncClient, Client, RetryPolicy

QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05)


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


@pytest.fixture
def gateway(served: Served) -> FakeGateway:
    return served.gateway


@pytest.fixture(params=["sync", "async"])
def make_api(request: pytest.FixtureRequest) -> Callable[..., ClientApi]:
    """Makes a client of the kind under test."""

    def make(address: str, **options: Any) -> ClientApi:
        options = {"retry": QUICK, "api_key": "gk_test", **options}
        if request.param == "sync":
            return SyncApi(Client(address, **options))
        return AsyncApi(AsyncClient(address, **options))

    return make


@pytest.fixture
async def api(make_api: Callable[..., ClientApi], served: Served) -> AsyncIterator[ClientApi]:
    """A client of the fake gateway."""
    api = make_api(served.address)
    yield api
    await api.close()
