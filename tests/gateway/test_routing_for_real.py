"""Requests go where their beginning is cached: real workers, and what they find against what was foretold."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.in_process import MODEL, TENANT, InProcess, host, in_process
from support.workers import measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.gateway.core import new_request_id
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions, Tenant
from gemline.telemetry import Telemetry

NUM_SESSIONS, NUM_TURNS = 6, 4
OTHER = Tenant("someone-else")


@pytest.fixture
async def telemetry() -> Telemetry:
    return measuring()


@pytest.fixture
async def platform(redis_url: str, tiny_checkpoint: Path, telemetry: Telemetry) -> AsyncIterator[InProcess]:
    """With a second decode worker."""
    async with in_process(redis_url, tiny_checkpoint, telemetry) as running:
        engine = EngineOptions(num_kv_blocks=256, num_threads=1)
        second = host(DecodeWorker(DecodeOptions(tiny_checkpoint, MODEL, engine, prefill="never")), redis_url)
        await second.start()
        try:
            yield running
        finally:
            await second.stop()


async def ask(platform: InProcess, token_ids: list[int], tenant: Tenant = TENANT) -> int:
    """How many tokens of the prompt were cached."""
    options = SamplingOptions(temperature=0.0, ignore_eos=True, max_tokens=8)
    request = GenerationRequest(new_request_id(), MODEL, Prompt(token_ids=tuple(token_ids)), options)
    *_, last = [piece async for piece in await platform.gateway.generate(tenant, request)]
    assert last.usage is not None
    return last.usage.cached_tokens


async def test_every_turn_finds_what_the_turn_before_left_and_that_was_foretold(
    platform: InProcess, telemetry: Telemetry
) -> None:
    sessions = [[2, *range(300 + 20 * number, 340 + 20 * number)] for number in range(NUM_SESSIONS)]
    for turn in range(NUM_TURNS):
        for number, prompt in enumerate(sessions):
            num_cached = await ask(platform, prompt)
            assert num_cached == (0 if turn == 0 else 16 * ((len(prompt) - 6) // 16)), (number, turn)
            prompt += [*range(400 + turn, 405 + turn)]
    predicted = measure(telemetry, "gemline_gateway_predicted_hit_tokens_total")
    assert predicted == measure(telemetry, "gemline_gateway_actual_hit_tokens_total") > 0


async def test_what_one_tenant_left_is_neither_expected_nor_found_for_another(
    platform: InProcess, telemetry: Telemetry
) -> None:
    prompt = [2, *range(300, 360)]
    await ask(platform, prompt)
    before = measure(telemetry, "gemline_gateway_predicted_hit_tokens_total")
    assert await ask(platform, prompt, OTHER) == 0
    assert measure(telemetry, "gemline_gateway_predicted_hit_tokens_total") == before
    assert await ask(platform, prompt) == 48
