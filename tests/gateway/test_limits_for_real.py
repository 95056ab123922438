"""Limits through the whole gateway: exact, told in headers, settled with what was delivered, free after a cancel."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess

from gemline.cluster.access import Access, KeyRecord, TenantRecord
from gemline.cluster.connection import calling
from gemline.cluster.limits import Limits, LimitStore, Reserved, UsageRecord
from gemline.cluster.operations import operating
from gemline.cluster.usage import UsageFilter
from gemline.errors import ModelNotAllowed, QuotaExceeded, RateLimited, Unavailable
from gemline.gateway.core import new_request_id
from gemline.gateway.dispatch import Dispatch
from gemline.gateway.http import create_app
from gemline.gateway.local_limits import LocalLimits
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions, Tenant


@pytest.fixture
async def http(platform: InProcess) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(platform.gateway, platform.settings))
    headers = {"authorization": f"Bearer {platform.api_key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        yield client


async def limit(platform: InProcess, **changes: Any) -> None:
    """What the tenant's record has from now on."""
    record = await platform.access.tenant(TENANT.tenant_id)
    await platform.access.put_tenant(replace(record, **changes), is_new=False)
    platform.keys._cache.clear()


def asked(max_tokens: int = 8, num_prompt: int = 10) -> GenerationRequest:
    options = SamplingOptions(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
    return GenerationRequest(new_request_id(), MODEL, Prompt(token_ids=(2, *range(300, 299 + num_prompt))), options)


def limited(limits: Limits) -> Tenant:
    return Tenant.of(Access(TenantRecord("limited", limits=limits)))


def fresh(tenant: Tenant) -> Tenant:
    """With its next request."""
    return Tenant(tenant.tenant_id, tenant.access)


def counted(tenant: Tenant) -> Tenant:
    """With one that is counted already."""
    again = fresh(tenant)
    again.standing.is_counted = True
    return again


async def generate(platform: InProcess, tenant: Tenant, request: GenerationRequest) -> None:
    async for _ in await platform.gateway.generate(tenant, request):
        pass


async def settled(platform: InProcess, redis_url: str, num: int) -> list[UsageRecord]:
    """The usage records, once there are so many."""
    async with operating(redis_url) as operations:
        for _ in range(500):
            page = await operations.usage.page(UsageFilter())
            if len(page.entries) >= num:
                break
            await asyncio.sleep(0.01)
        return [entry.record for entry in page.entries]


async def test_200_concurrent_calls_against_25_requests_a_minute_admit_exactly_25(
    platform: InProcess, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("limits", "keys"):  # all the time that a busy machine needs
        monkeypatch.setattr(f"gemline.cluster.{module}.calling", partial(calling, timeout_s=20))
    await limit(platform, limits=Limits(requests_per_min=25))
    answers = await asyncio.gather(*(http.get("/v1/models") for _ in range(200)))
    assert sorted(answer.status_code for answer in answers) == [200] * 25 + [429] * 175
    refused = next(answer for answer in answers if answer.status_code == 429)
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "tenant acme may have 25 requests a minute, has 25 and asks for 1 more" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == "25"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    left = [int(it.headers["x-ratelimit-remaining-requests"]) for it in answers if it.status_code == 200]
    assert sorted(left) == list(range(25))


async def test_a_request_far_from_its_limit_is_counted_once_in_one_question(
    platform: InProcess, http: httpx.AsyncClient, num_asked: Callable[[], int]
) -> None:
    await limit(platform, limits=Limits(requests_per_min=12, tokens_per_min=1000))
    body = {"model": MODEL, "prompt": [2, *range(300, 309)], "max_tokens": 4, "temperature": 0}
    # What is sent, how it ends, and how often Redis is asked; the first time nothing is known of the tenant.
    for sent, status, num in (
        (body, 200, 2),
        (body, 200, 1),
        (body | {"n": 3, "temperature": 1}, 200, 3),
        (body | {"prompt": "x" * 2000}, 400, 1),  # too long, as a tokenization worker finds
        (body | {"temperature": "hot"}, 400, 1),
        (body | {"model": "another"}, 404, 1),
        (body, 200, 2),  # half are left: who may be near the limit is asked about first
    ):
        before = num_asked()
        answer = await http.post("/v1/completions", json=sent)
        assert (answer.status_code, num_asked() - before) == (status, num), answer.text
    assert answer.headers["x-ratelimit-remaining-requests"] == "5"


async def test_what_is_refused_by_its_number_has_done_nothing(platform: InProcess, http: httpx.AsyncClient) -> None:
    """Nor has it where its tenant seemed far from the limit when it came."""
    await limit(platform, limits=Limits(requests_per_min=10))
    assert (await http.get("/v1/models")).headers["x-ratelimit-remaining-requests"] == "9"
    made = await asyncio.gather(*(http.post("/v1/sessions", json={"model": MODEL}) for _ in range(30)))
    assert sorted(answer.status_code for answer in made) == [200] * 9 + [429] * 21
    await limit(platform, limits=Limits())
    assert len((await http.get("/v1/sessions")).json()["data"]) == 9


async def test_a_fault_is_told_as_such_whatever_the_limits_say_by_then(
    platform: InProcess, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit(platform, limits=Limits(requests_per_min=9))
    assert (await http.get("/v1/models")).status_code == 200

    async def away(self: LimitStore, *arguments: object, **options: object) -> None:
        raise Unavailable("Redis does not answer")

    def broken(*arguments: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(LimitStore, "_ask", away)
    monkeypatch.setattr("gemline.gateway.core.check_sampling", broken)
    failed = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")


async def test_what_its_tokens_refuse_counts_and_what_its_number_refuses_is_not_read(
    platform: InProcess, http: httpx.AsyncClient
) -> None:
    await limit(platform, limits=Limits(requests_per_min=4, tokens_per_min=20))
    assert (await http.get("/v1/models")).headers["x-ratelimit-remaining-requests"] == "3"
    body = {"model": MODEL, "prompt": [2, *range(300, 309)], "max_tokens": 50}
    refused = await http.post("/v1/completions", json=body)
    assert "tokens a minute" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-requests"] == "2"
    for _ in range(2):
        assert (await http.get("/v1/models")).status_code == 200
    assert (await http.post("/v1/completions", content=b"{")).status_code == 429


async def test_an_answer_tells_what_is_left_of_the_tokens(platform: InProcess, http: httpx.AsyncClient) -> None:
    await limit(platform, limits=Limits(tokens_per_min=100))
    body = {"model": MODEL, "prompt": [2, *range(300, 309)], "max_tokens": 30, "temperature": 0}
    answer = await http.post("/v1/completions", json=body)
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "60"
    refused = await http.post("/v1/completions", json=body | {"max_tokens": 91})
    assert refused.status_code == 429
    assert "asks for 101 more, which never fits" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


async def test_what_was_not_used_is_given_back_and_every_request_leaves_one_record(
    platform: InProcess, redis_url: str
) -> None:
    tenant = limited(Limits(tokens_per_min=100, concurrent_requests=1, token_budget=1000))
    request = asked(max_tokens=8, num_prompt=10)
    for _ in range(4):
        request = asked(max_tokens=8)
        await generate(platform, tenant, request)
        await settled(platform, redis_url, 1)
        await eventually(lambda: not platform.gateway._admission.allowance._unsettled)
    records = await settled(platform, redis_url, 4)
    assert [(it.prompt_tokens, it.completion_tokens, it.outcome) for it in records] == [(10, 8, "length")] * 4
    assert (records[-1].request_id, records[-1].tenant, records[-1].model) == (request.request_id, "limited", MODEL)
    assert records[-1].kv_byte_seconds > 0
    assert tenant.standing.tokens is not None
    assert tenant.standing.tokens.remaining == 100 - 4 * 18


async def test_a_cancelled_answer_is_billed_for_what_was_delivered_and_is_free_at_once(
    platform: InProcess, redis_url: str
) -> None:
    tenant = limited(Limits(concurrent_requests=1, tokens_per_min=1000))
    answer = await platform.gateway.generate(tenant, asked(max_tokens=200))
    piece = await anext(answer)
    assert piece.finish_reason is None
    with pytest.raises(RateLimited, match="may have 1 requests at once, has 1"):
        await platform.gateway.generate(tenant, asked())
    await answer.aclose()
    (record,) = await settled(platform, redis_url, 1)
    assert record.outcome == "canceled"
    assert (record.prompt_tokens, 0 < record.completion_tokens < 200) == (10, True)
    await generate(platform, tenant, asked())


async def test_who_wants_the_prompt_alone_is_billed_for_no_more(platform: InProcess, redis_url: str) -> None:
    """One token is generated with it, which nobody gets."""
    request = asked()
    options = SamplingOptions(temperature=0.0, max_tokens=0, echo=True, logprobs=0)
    await generate(platform, limited(Limits(tokens_per_min=100)), replace(request, sampling=options))
    (record,) = await settled(platform, redis_url, 1)
    assert (record.prompt_tokens, record.completion_tokens) == (10, 0)


async def test_a_request_that_cannot_start_holds_nothing(
    platform: InProcess, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = limited(Limits(concurrent_requests=1, token_budget=50))

    async def nowhere(self: Dispatch) -> None:
        raise Unavailable("no decode worker can take it")

    monkeypatch.setattr(Dispatch, "start", nowhere)
    with pytest.raises(Unavailable):
        await platform.gateway.generate(tenant, asked(max_tokens=40))
    (record,) = await settled(platform, redis_url, 1)
    assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (0, 0, "unavailable")
    with pytest.raises(Unavailable):  # and is not refused by the limits
        await platform.gateway.generate(tenant, asked(max_tokens=40))


async def test_who_is_cancelled_while_redis_is_asked_holds_nothing(
    platform: InProcess, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, asking = LimitStore.reserve, asyncio.Event()

    async def slow(self: LimitStore, *arguments: Any, **options: Any) -> Reserved:
        await reserve(self, *arguments, **options)
        asking.set()
        await asyncio.Event().wait()
        raise AssertionError

    tenant = limited(Limits(concurrent_requests=1, tokens_per_min=30, token_budget=30))
    with monkeypatch.context() as patch:
        patch.setattr(LimitStore, "reserve", slow)
        task = asyncio.create_task(platform.gateway.generate(tenant, asked()))
        await asking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (record,) = await settled(platform, redis_url, 1)
    assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("canceled", 0, 0)
    await generate(platform, fresh(tenant), asked())


async def test_a_spent_budget_is_another_error(platform: InProcess) -> None:
    with pytest.raises(QuotaExceeded, match="tokens of its budget") as caught:
        await platform.gateway.generate(limited(Limits(token_budget=10)), asked())
    assert caught.value.retry_after_s is None  # 18 never fit into 10


async def test_a_key_sees_and_uses_the_models_of_its_list_alone(platform: InProcess, http: httpx.AsyncClient) -> None:
    made = await platform.access.create_key(KeyRecord("acme", models=("another",)))
    headers = {"authorization": f"Bearer {made.key}"}
    assert (await http.get("/v1/models", headers=headers)).json()["data"] == []
    for path, body in (
        ("completions", {"prompt": "x"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        refused = await http.post(f"/v1/{path}", json={"model": MODEL, **body}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    with pytest.raises(ModelNotAllowed):
        await platform.gateway.tokenize(Tenant.of(Access(TenantRecord("x", models=()))), MODEL, Prompt(text="x"))


async def test_a_disabled_tenant_is_told_so(platform: InProcess, http: httpx.AsyncClient) -> None:
    await limit(platform, is_disabled=True)
    refused = await http.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


async def test_without_redis_limits_refuse_or_hold_a_share_and_what_has_none_goes_on(
    platform: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowance, tenant = (
        platform.gateway._admission.allowance,
        limited(Limits(requests_per_min=10, concurrent_requests=2)),
    )

    async def away(self: LimitStore, *arguments: object, **options: object) -> None:
        raise Unavailable("Redis at 10.0.0.1:6379 does not answer")

    monkeypatch.setattr(LimitStore, "_ask", away)
    with pytest.raises(Unavailable, match=r"^limits cannot be checked now; try again$"):
        await allowance.count(tenant)
    await generate(platform, TENANT, asked())
    monkeypatch.setattr(allowance, "_local", LocalLimits(0.5))
    answer = await platform.gateway.generate(fresh(tenant), asked(max_tokens=100))  # which counts, too
    with pytest.raises(RateLimited, match="at once"):
        await platform.gateway.generate(counted(tenant), asked())
    await answer.aclose()
    await generate(platform, counted(tenant), asked())
    for _ in range(4):
        await allowance.count(fresh(tenant))
    for refused in (allowance.count(fresh(tenant)), platform.gateway.generate(fresh(tenant), asked())):
        with pytest.raises(RateLimited, match=r"0\.5 of 10 requests a minute, 5 used"):
            await refused


async def test_usage_waits_for_a_redis_that_is_away(
    platform: InProcess, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, num_tries = LimitStore.settle, 0

    async def flaky(self: LimitStore, *arguments: Any) -> bool:
        nonlocal num_tries
        num_tries += 1
        if num_tries < 3:
            raise Unavailable("Redis does not answer")
        return await settle(self, *arguments)

    monkeypatch.setattr(LimitStore, "settle", flaky)
    monkeypatch.setattr("gemline.gateway.allowance._RETRY_S", 0.02)
    await generate(platform, TENANT, asked())
    assert len(await settled(platform, redis_url, 1)) == 1
    assert num_tries == 3


async def test_a_settling_whose_answer_is_lost_counts_once(
    platform: InProcess, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has settled it, the gateway does not know, and settles it again."""
    settle, told = LimitStore.settle, list[bool]()

    async def deaf(self: LimitStore, *arguments: Any) -> bool:
        told.append(await settle(self, *arguments))
        if len(told) < 4:
            raise Unavailable("Redis does not answer")
        return told[-1]

    monkeypatch.setattr(LimitStore, "settle", deaf)
    monkeypatch.setattr("gemline.gateway.allowance._RETRY_S", 0.02)
    limits = Limits(tokens_per_min=100, concurrent_requests=1, token_budget=28)
    await generate(platform, limited(limits), asked(max_tokens=8, num_prompt=10))
    await eventually(lambda: len(told) == 4)
    assert told == [True, False, False, False]
    assert [it.prompt_tokens + it.completion_tokens for it in await settled(platform, redis_url, 1)] == [18]
    async with operating(redis_url) as operations:
        (used,) = await operations.usage.sums(UsageFilter(tenant="limited"))
    assert (used.num_requests, used.prompt_tokens, used.completion_tokens) == (1, 10, 8)
    again = limited(limits)
    with pytest.raises(QuotaExceeded, match="has 18 and asks for 11 more"):
        await platform.gateway.generate(again, asked(max_tokens=1, num_prompt=10))
    await generate(platform, again, asked(max_tokens=1, num_prompt=9))
    assert again.standing.tokens is not None and again.standing.tokens.remaining == 100 - 18 - 10
