"""Limits in a real Redis: exact under concurrency, all or nothing, settled once, free again after a lease."""

import asyncio
import json
import random
from calendar import timegm
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from typing import Literal, cast

import pytest
from redis.asyncio import Redis

from gemline.cluster import limit_scripts
from gemline.cluster.connection import calling, connect
from gemline.cluster.limits import Limits, LimitStore, Reserved, Scope, UsageRecord
from gemline.cluster.usage import UsageFilter, UsageLog
from gemline.errors import ConfigurationError, Unavailable


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def store(redis: Redis) -> LimitStore:
    return LimitStore(redis)


EACH = {
    "requests_per_min": Limits(requests_per_min=25),
    "tokens_per_min": Limits(tokens_per_min=25),
    "concurrent_requests": Limits(concurrent_requests=25),
    "token_budget": Limits(token_budget=25),
}


def scope(limits: Limits, name: str = "t/acme") -> Scope:
    return Scope(name, limits)


def usage(request_id: str, prompt: int = 0, completion: int = 0, kv: int = 0) -> UsageRecord:
    return UsageRecord(request_id, "acme", "", "k1", "gemma", "stop", prompt, 0, completion, kv_byte_seconds=kv)


@dataclass
class Taken:
    """What a request has of a minute's tokens, and since which second."""

    second: int
    amount: int
    answer: Reserved


async def let_pass(redis: Redis, seconds: int) -> None:
    """All that was seen in a minute is so much older; below 0: the clock goes back."""
    async for name in redis.scan_iter("gemline:{limits}:held:*"):
        for request_id, value in cast(dict[bytes, bytes], await redis.hgetall(name)).items():
            if request_id:
                tokens, second = value.split()
                await redis.hset(name, request_id, f"{tokens.decode()} {int(second) - seconds}")
    async for name in redis.scan_iter("gemline:{limits}:minute:*"):
        fields = cast(dict[bytes, bytes], await redis.hgetall(name))
        await redis.delete(name)
        for field, value in fields.items():
            if field.isalpha():
                await redis.hset(name, field, str(int(value) - seconds * (field != b"sum")))
            else:
                await redis.hset(name, str(int(field) - seconds), value)


def kinds(answers: Sequence[Reserved]) -> list[str]:
    return [answer.refusal.kind if answer.refusal else "" for answer in answers]


@pytest.mark.parametrize("kind", EACH)
async def test_200_at_once_against_a_limit_of_25_admit_exactly_25(
    redis_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From eight clients, as eight gateways would, and with all the time that a busy machine needs."""
    monkeypatch.setattr("gemline.cluster.limits.calling", partial(calling, timeout_s=20))
    clients = [connect(redis_url, retries=0) for _ in range(8)]
    stores, scopes = [LimitStore(client) for client in clients], (Scope("t/acme", EACH[kind]),)

    async def ask(number: int) -> Reserved:
        store = stores[number % 8]
        if kind == "requests_per_min":
            return await store.count(scopes)
        return await store.reserve(scopes, f"req_{number}", 1)

    answers = await asyncio.gather(*map(ask, range(200)))
    assert sum(answer.refusal is None for answer in answers) == 25
    for client in clients:
        await client.aclose()


async def test_all_scopes_are_checked_and_nothing_is_taken_when_one_refuses(store: LimitStore) -> None:
    tenant, project = scope(Limits(tokens_per_min=100)), scope(Limits(tokens_per_min=40), "p/acme/web")
    answer = await store.reserve((tenant, project), "req_1", 50)
    assert answer.refusal is not None
    assert answer.refusal._replace(wait_ms=0) == ("p/acme/web", "tokens", 40, 0, 50, 0)
    assert answer.refusal.wait_ms == -1  # 50 never fit into 40
    assert (await store.reserve((tenant,), "req_2", 100)).refusal is None


async def test_a_refusal_says_when_there_will_be_room_and_levels_what_is_left(store: LimitStore) -> None:
    own = (scope(Limits(requests_per_min=2, tokens_per_min=10)),)
    first = await store.count(own)
    assert first.requests is not None and first.tokens is not None
    assert (first.requests.limit, first.requests.remaining, first.tokens.remaining) == (2, 1, 10)
    assert 60_000 < first.requests.reset_ms <= 61_000
    assert first.tokens.reset_ms == 0
    await store.count(own)
    refusal = (await store.count(own)).refusal
    assert refusal is not None
    assert (refusal.kind, refusal.used, refusal.asked) == ("requests", 2, 1)
    assert 55_000 < refusal.wait_ms <= 61_000


async def test_what_a_minute_saw_is_forgotten_after_it_and_not_before(store: LimitStore, redis: Redis) -> None:
    wide, own = (scope(Limits(requests_per_min=100)),), (scope(Limits(requests_per_min=5)),)
    for number, until_next_s in ((50, 2), (2, 30), (3, 30)):
        for _ in range(number):
            await store.count(wide)
        await let_pass(redis, until_next_s)
    answer = await store.count(own)
    assert answer.refusal is not None
    assert answer.refusal.used == 5
    assert answer.refusal.wait_ms <= 1000
    await let_pass(redis, 30)
    answer = await store.count(own)
    assert answer.requests is not None and answer.requests.remaining == 5 - 3 - 1
    await let_pass(redis, 10_000)
    answer = await store.count(own)
    assert answer.requests is not None and answer.requests.remaining == 5 - 1
    assert await redis.hlen("gemline:{limits}:minute:requests:t/acme") == 4  # what was old is gone


@pytest.mark.parametrize("seed", range(12))
async def test_the_sum_of_a_minute_is_that_of_its_slots_whatever_happens(
    store: LimitStore, redis: Redis, seed: int
) -> None:
    """Against a plain account of all that was taken, settled and forgotten, also where the clock goes back."""
    draw, limit = random.Random(seed), 300
    own, taken = (scope(Limits(tokens_per_min=limit)),), dict[str, Taken]()
    slots = dict[int, int]()
    for number in range(150):
        match draw.choices(("reserve", "settle", "lose", "wait"), (10, 6, 1, 4))[0]:
            case "reserve":
                request_id, asked = f"req_{number}", draw.randint(1, 80)
                answer = await store.reserve(own, request_id, asked)
                kept, slots = slots, dict[int, int]()
                for second, amount in kept.items():
                    if second > answer.at - 61:
                        slots[min(second, answer.at)] = slots.get(min(second, answer.at), 0) + amount
                used = sum(slots.values())
                if answer.refusal is None:
                    assert answer.tokens is not None and answer.tokens.remaining == max(0, limit - used - asked)
                    assert used + asked <= limit
                    taken[request_id] = Taken(answer.at, asked, answer)
                    slots[answer.at] = slots.get(answer.at, 0) + asked
                else:
                    assert answer.refusal.used == used > limit - asked
                    assert answer.refusal.wait_ms > 0
            case "settle" if taken:
                request_id, used = draw.choice(list(taken)), draw.randint(0, 80)
                it = taken.pop(request_id)
                for is_first in (True, False):
                    told = it.answer._replace(at=it.second)
                    assert await store.settle(own, told, it.amount, usage(request_id, used)) is is_first
                if it.second in slots:
                    slots[it.second] = max(0, slots[it.second] + used - it.amount)
            case "lose" if taken:  # the lease of one is over, which goes on all the same
                await redis.hdel("gemline:{limits}:held:t/acme", draw.choice(list(taken)))
            case "wait":
                seconds = draw.choice((1, 2, 10, 59, 60, 61, 200, -1, -5, -60, -61, -100))
                await let_pass(redis, seconds)
                slots = {second - seconds: amount for second, amount in slots.items()}
                for it in taken.values():
                    it.second -= seconds


async def test_a_clock_that_goes_back_takes_nothing_for_good(store: LimitStore, redis: Redis) -> None:
    own = (scope(Limits(requests_per_min=5)),)
    await store.count(own)
    await let_pass(redis, -100)
    for _ in range(3):
        await store.count(own)
    await let_pass(redis, 50)
    await store.count(own)
    await let_pass(redis, 50)  # the first four are over, and the clock is where it was
    answer = await store.count(own)
    assert answer.requests is not None and answer.requests.remaining == 5 - 2


async def test_who_had_no_limit_of_tokens_gives_none_back_of_what_others_took(store: LimitStore) -> None:
    """Gateways hear of a new limit one after the other."""
    before, after = (scope(Limits(concurrent_requests=9)),), (scope(Limits(tokens_per_min=100)),)
    reserved = await store.reserve(before, "req_1", 90)
    counted = await store.reserve(after, "req_2", 60)
    await store.settle(before, reserved._replace(at=counted.at), 90, usage("req_1", 10))
    answer = await store.reserve(after, "req_3", 1)
    assert answer.tokens is not None and answer.tokens.remaining == 100 - 60 - 1


async def test_who_was_asked_about_twice_gives_back_what_was_taken_at_first(store: LimitStore, redis: Redis) -> None:
    own = (scope(Limits(tokens_per_min=100)),)
    await store.reserve(own, "req_1", 60)
    await let_pass(redis, 2)
    again = await store.reserve(own, "req_1", 60)
    await store.reserve(own, "req_2", 30)
    await store.settle(own, again, 60, usage("req_1", 10))
    await let_pass(redis, 59)  # the slot of the first is gone
    answer = await store.reserve(own, "req_3", 1)
    assert answer.tokens is not None and answer.tokens.remaining == 100 - 30 - 1


async def test_settling_gives_back_what_was_not_used_and_happens_once(store: LimitStore, redis: Redis) -> None:
    own = (scope(Limits(tokens_per_min=100, concurrent_requests=1, token_budget=1000)),)
    reserved = await store.reserve(own, "req_1", 90)
    assert kinds([await store.reserve(own, "req_2", 5)]) == ["concurrent_requests"]
    assert await store.settle(own, reserved, 90, usage("req_1", 10, 5))
    assert not await store.settle(own, reserved, 90, usage("req_1", 10, 5))
    second = await store.reserve(own, "req_2", 85)
    assert second.refusal is None
    assert second.tokens is not None and second.tokens.remaining == 0
    records = [entry.record for entry in (await UsageLog(redis).page(UsageFilter())).entries]
    assert [(it.request_id, it.prompt_tokens, it.completion_tokens) for it in records] == [("req_1", 10, 5)]


async def test_a_reservation_that_was_sent_twice_counts_once(store: LimitStore) -> None:
    own = (scope(Limits(tokens_per_min=100, concurrent_requests=1, token_budget=100)),)
    for _ in range(2):
        assert (await store.reserve(own, "req_1", 60)).refusal is None


async def test_what_a_dead_gateway_had_reserved_is_free_after_its_lease(redis: Redis) -> None:
    store, own = LimitStore(redis, lease_s=0.2), (scope(Limits(concurrent_requests=1, token_budget=100)),)
    assert (await store.reserve(own, "req_1", 60)).refusal is None
    for _ in range(3):
        await asyncio.sleep(0.1)
        await store.renew([("t/acme", "req_1")])
    assert kinds([await store.reserve(own, "req_2", 60)]) != [""]
    await asyncio.sleep(0.25)
    assert (await store.reserve(own, "req_2", 60)).refusal is None
    await store.renew([("t/acme", "req_1")])  # too late: it holds nothing any more
    assert await redis.zcard("gemline:{limits}:running:t/acme") == 1


async def test_a_budget_is_what_was_spent_and_what_is_reserved(store: LimitStore) -> None:
    own = (scope(Limits(token_budget=100)),)
    reserved = await store.reserve(own, "req_1", 60)
    refusal = (await store.reserve(own, "req_2", 60)).refusal
    assert refusal is not None and (refusal.kind, refusal.wait_ms) == ("token_budget", 1000)  # req_1 may use less
    await store.settle(own, reserved, 60, usage("req_1", 20, 10))
    assert kinds([await store.reserve(own, "req_2", 60), await store.reserve(own, "req_3", 20)]) == ["", "token_budget"]
    refusal = (await store.reserve(own, "req_4", 101)).refusal
    assert refusal is not None and refusal.wait_ms == -1


async def test_kv_byte_seconds_refuse_once_they_are_spent(store: LimitStore) -> None:
    own = (scope(Limits(kv_byte_seconds=1000)),)
    reserved = await store.reserve(own, "req_1", 1)
    await store.settle(own, reserved, 1, usage("req_1", kv=1500))
    assert kinds([await store.reserve(own, "req_2", 1)]) == ["kv_byte_seconds"]


@pytest.mark.parametrize("period", ["day", "month"])
async def test_a_budget_comes_back_with_the_next_day_or_month_of_utc(
    store: LimitStore, redis: Redis, period: Literal["day", "month"]
) -> None:
    own = (Scope("t/acme", Limits(token_budget=10, period=period)),)
    reserved = await store.reserve(own, "req_1", 10)
    await store.settle(own, reserved, 10, usage("req_1", 10))
    refusal = (await store.reserve(own, "req_2", 1)).refusal
    assert refusal is not None
    now = datetime.fromtimestamp(int((await redis.time())[0]), UTC)
    following = (
        (now.year + now.month // 12, now.month % 12 + 1, 1) if period == "month" else (now.year, now.month, now.day + 1)
    )
    ends_s = timegm((*following, 0, 0, 0))
    assert abs(refusal.wait_ms / 1e3 + now.timestamp() - ends_s) < 2


def test_a_limit_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="tokens_per_min must be from 0 to 1125899906842624, is -1"):
        Limits(tokens_per_min=-1)


async def test_without_redis_it_is_unavailable() -> None:
    client = Redis.from_url("redis://127.0.0.1:1")
    with pytest.raises(Unavailable):
        await LimitStore(client).count((scope(Limits(requests_per_min=1)),))
    await client.aclose()


async def test_months_and_days_are_those_of_the_calendar(redis: Redis) -> None:
    source = limit_scripts._COMMON + "now_s = tonumber(ask.at)\nreturn {period_of(ask.kind)}"
    script = redis.register_script(source)
    for year, month, day in product((2026, 2027, 2028, 2100, 2400), range(1, 13), (1, 27, 28)):
        at = timegm((year, month, day, 23, 59, 59))
        monthly = await script(args=(json.dumps({"at": at, "kind": "month"}),))
        ends = timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0))
        assert (monthly[0].decode(), monthly[1]) == (f"{year}-{month}", ends)
        daily = await script(args=(json.dumps({"at": at, "kind": "day"}),))
        assert daily[1] == at + 1
