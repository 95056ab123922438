"""Requests go where their beginning is cached: real workers, and what they find against what was foretold."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, host, in_process
from support.workers import hosted, measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.gateway.core import new_request_id
from gemline.gateway.recording import Recording
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions, Tenant
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.telemetry import Telemetry, off

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
    return (await talk(platform, token_ids, 8, tenant))[1]


async def talk(
    platform: InProcess, token_ids: list[int], max_tokens: int, tenant: Tenant = TENANT
) -> tuple[list[int], int]:
    """The answer's ids, and how many tokens of the prompt were cached."""
    options = SamplingOptions(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
    request = GenerationRequest(new_request_id(), MODEL, Prompt(token_ids=tuple(token_ids)), options)
    recording = Recording()
    *_, last = [piece async for piece in await platform.gateway.generate(tenant, request, recording=recording)]
    assert last.usage is not None
    return recording._token_ids, last.usage.cached_tokens


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


async def test_what_is_found_counts_at_the_decode_worker_wherever_the_prompt_is_prefilled(
    redis_url: str, tiny_checkpoint: Path, telemetry: Telemetry
) -> None:
    engine = EngineOptions(num_kv_blocks=256, num_threads=1)
    async with (
        hosted(PrefillWorker(PrefillOptions(tiny_checkpoint, MODEL, engine)), redis_url, off()),
        in_process(redis_url, tiny_checkpoint, telemetry, prefill="always") as running,
    ):
        prompt = [2, *range(300, 340)]
        for turn in range(NUM_TURNS):
            prompt += (await talk(running, prompt, 24))[0]
            prompt += range(400 + turn, 405 + turn)
        await eventually(lambda: measure(telemetry, "gemline_prefills_total", where="remote") == NUM_TURNS)
        predicted = measure(telemetry, "gemline_gateway_predicted_hit_tokens_total")
        assert predicted == measure(telemetry, "gemline_gateway_actual_hit_tokens_total") > 0
