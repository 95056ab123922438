"""What an operator declares public is shared by all tenants, and nothing else is; what is foretold is found."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, in_process
from support.workers import measure, measuring

from gemline.cluster.public_prefixes import MAX_PREFIXES, PublicPrefix, PublicPrefixes
from gemline.errors import ConfigurationError, Unavailable
from gemline.gateway.core import new_request_id
from gemline.gateway.public_prefixes import PublicTokens
from gemline.gateway.requests import GenerationRequest, Message, Prompt, SamplingOptions, Tenant
from gemline.telemetry import Telemetry

OTHER = Tenant("someone-else")
RULES = "You are a helper of the shop. Be kind, be short, and never name a price that is not in the list. " * 2
RAW = "Once upon a time there was a princess who lived in a castle made of glass. " * 2


@pytest.fixture
async def telemetry() -> Telemetry:
    return measuring()


@pytest.fixture
async def registry(redis_url: str) -> AsyncIterator[PublicPrefixes]:
    redis = Redis.from_url(redis_url)
    yield PublicPrefixes(redis)
    await redis.aclose()


@pytest.fixture
async def platform(
    redis_url: str, tiny_checkpoint: Path, telemetry: Telemetry, registry: PublicPrefixes
) -> AsyncIterator[InProcess]:
    async with in_process(redis_url, tiny_checkpoint, telemetry) as running:
        await registry.put(PublicPrefix("shop", MODEL, RULES))
        await registry.put(PublicPrefix("tale", MODEL, RAW, is_raw=True))
        await registry.put(PublicPrefix("elsewhere", "another-model", "Write a poem about the sea and the wind. " * 4))
        await running.gateway._public._refresh(registry)
        yield running


async def ask(platform: InProcess, prompt: Prompt, tenant: Tenant) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were cached."""
    options = SamplingOptions(temperature=0.0, ignore_eos=True, max_tokens=8)
    answer = await platform.gateway.generate(tenant, GenerationRequest(new_request_id(), MODEL, prompt, options))
    pieces = [piece async for piece in answer]
    assert pieces[-1].usage is not None
    return "".join(piece.text for piece in pieces), pieces[-1].usage.cached_tokens


def chat(question: str) -> Prompt:
    return Prompt(messages=(Message("user", f"{RULES.strip()}\n\n{question}"),))


async def test_tenants_share_a_public_beginning_and_nothing_behind_it(
    platform: InProcess, telemetry: Telemetry
) -> None:
    card = platform.gateway.model(TENANT, MODEL)
    ids = await platform.gateway.tokenize(TENANT, MODEL, chat("What do you sell in the long winter months? Tell all."))
    num_public = platform.gateway._public.num_public(card, ids)
    assert 32 < num_public < len(ids) - 16
    first, num_cached = await ask(platform, Prompt(token_ids=tuple(ids)), TENANT)
    assert num_cached == 0
    answer, num_cached = await ask(platform, Prompt(token_ids=tuple(ids)), OTHER)
    assert (answer, num_cached) == (first, num_public // 16 * 16)
    again, num_cached = await ask(platform, Prompt(token_ids=tuple(ids)), OTHER)
    assert (again, num_cached) == (first, (len(ids) - 1) // 16 * 16)
    predicted = measure(telemetry, "gemline_gateway_predicted_hit_tokens_total")
    assert predicted == measure(telemetry, "gemline_gateway_actual_hit_tokens_total") > 0


async def test_a_raw_text_is_one_too_and_other_models_texts_are_not(platform: InProcess) -> None:
    await ask(platform, Prompt(text=RAW + "One day"), TENANT)
    _, num_cached = await ask(platform, Prompt(text=RAW + "But then"), OTHER)
    assert num_cached > 16
    poem = Prompt(text="Write a poem about the sea and the wind. " * 4 + "Now.")
    await ask(platform, poem, TENANT)
    assert (await ask(platform, poem, OTHER))[1] == 0


async def test_what_is_public_no_longer_is_not_found_by_others(platform: InProcess, registry: PublicPrefixes) -> None:
    await ask(platform, chat("Hello?"), TENANT)
    assert await registry.remove("shop")
    assert not await registry.remove("shop")
    await platform.gateway._public._refresh(registry)
    assert (await ask(platform, chat("Good morning?"), OTHER))[1] == 0


async def test_the_registry_is_followed_and_what_was_known_holds_while_redis_is_away(
    platform: InProcess, registry: PublicPrefixes
) -> None:
    gateway, card = platform.gateway, platform.gateway.model(TENANT, MODEL)
    following = PublicTokens(registry, gateway._catalog, gateway._tokenizers, fresh_s=0.02)
    following.start()
    ids = await gateway.tokenize(TENANT, MODEL, Prompt(text="A text that is declared only now, while all run."))
    try:
        assert following.num_public(card, ids) <= 1  # <bos>
        await registry.put(PublicPrefix("late", MODEL, "A text that is declared only now", is_raw=True))
        await eventually(lambda: following.num_public(card, ids) > 5)
        away = Redis.from_url("redis://127.0.0.1:1")
        with pytest.raises(Unavailable):
            await following._refresh(PublicPrefixes(away))
        assert following.num_public(card, ids) > 5
    finally:
        following.stop()


async def test_what_cannot_be_declared_names_the_limit(registry: PublicPrefixes) -> None:
    for prefix, word in (
        (PublicPrefix("", MODEL, "text"), "1 to 64"),
        (PublicPrefix("a", MODEL, " "), "empty"),
        (PublicPrefix("a", MODEL, "x" * (2**20 + 1)), "1048577"),
    ):
        with pytest.raises(ConfigurationError, match=word):
            await registry.put(prefix)
    for number in range(MAX_PREFIXES):
        await registry.put(PublicPrefix(f"p{number}", MODEL, "text"))
    with pytest.raises(ConfigurationError, match="64"):
        await registry.put(PublicPrefix("one more", MODEL, "text"))
    await registry.put(PublicPrefix("p0", MODEL, "another text"))
    assert (await registry.all())[0] == PublicPrefix("p0", MODEL, "another text")
