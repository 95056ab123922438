"""Wrong admin keys: an address has a few, then waits; nobody else does."""

import httpx
import pytest
from fastapi import FastAPI

from gemline.errors import RateLimited
from gemline.gateway.admin import throttle
from gemline.gateway.admin.throttle import MAX_FAILURES, WINDOW_S, FailedLogins

ADMIN_KEY = "ga_sixteen_and_more"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throttle, "time", clock)
    return clock


def is_refused(logins: FailedLogins, address: str) -> bool:
    try:
        logins.check(address)
    except RateLimited:
        return True
    return False


async def get(app: FastAPI, key: str, address: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(address, 5000))
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/v1", headers=headers) as client:
        return await client.get("/tenants")


async def test_after_a_few_wrong_keys_an_address_is_told_to_wait(app: FastAPI) -> None:
    for _ in range(MAX_FAILURES):
        assert (await get(app, "guess", "192.0.2.1")).status_code == 401
    for key in ("guess", ADMIN_KEY):  # or guesses would go on
        answer = await get(app, key, "192.0.2.1")
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= WINDOW_S
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert (await get(app, ADMIN_KEY, "192.0.2.2")).status_code == 200


async def test_right_keys_and_missing_ones_are_no_failures(app: FastAPI) -> None:
    for _ in range(MAX_FAILURES + 1):
        assert (await get(app, ADMIN_KEY, "192.0.2.1")).status_code == 200
        assert (await get(app, "", "192.0.2.1")).status_code == 401
    assert (await get(app, ADMIN_KEY, "192.0.2.1")).status_code == 200


def test_a_failure_is_forgotten_after_the_window(clock: Clock) -> None:
    logins = FailedLogins()
    logins.failed("192.0.2.1")
    clock.now_s += 20
    for _ in range(MAX_FAILURES - 1):
        logins.failed("192.0.2.1")
    with pytest.raises(RateLimited) as caught:
        logins.check("192.0.2.1")
    assert caught.value.retry_after_s == WINDOW_S - 20
    clock.now_s += WINDOW_S - 20
    logins.check("192.0.2.1")
    logins.failed("192.0.2.1")
    assert is_refused(logins, "192.0.2.1")


def test_an_ipv6_network_counts_as_one_and_a_mapped_address_as_itself(clock: Clock) -> None:
    logins = FailedLogins()
    for number in range(MAX_FAILURES):
        logins.failed(f"2001:db8::{number:x}")
        logins.failed(f"::ffff:192.0.2.{number}")
    logins.failed("::ffff:192.0.2.0")
    assert is_refused(logins, "2001:db8::ffff")
    assert not is_refused(logins, "2001:db8:0:1::1")
    assert not is_refused(logins, "192.0.2.0")


def test_so_many_addresses_are_remembered_and_no_more(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_ADDRESSES", 3)
    logins = FailedLogins()
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        for _ in range(MAX_FAILURES):
            logins.failed(address)
    logins.failed("192.0.2.1")  # the oldest no longer
    logins.failed("192.0.2.4")
    refused = [is_refused(logins, f"192.0.2.{last}") for last in (1, 2, 3, 4)]
    assert refused == [True, False, True, False]
    assert len(logins._failed_at) == 3
